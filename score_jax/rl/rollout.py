"""One rollout: encodes problems, samples dialogues, grades every turn, scores the reference.

Grading runs in worker processes. Meanwhile the devices draw the next turn, and at the end score
the dialogues under the reference model, which needs no rewards.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Protocol

import numpy as np
from jaxtyping import Array, Key

from score_jax.distributed import processes
from score_jax.distributed.sharding import local_rows
from score_jax.records import UNGRADED, VERDICTS, Grade, Problem
from score_jax.rl.dialogue import Encoder
from score_jax.rl.metrics import Metric, mean
from score_jax.tasks.grading.judgement import grade_judgement
from score_jax.text.chat import Chat
from score_jax.text.edit_distance import edit_distance_ratio
from score_jax.types import Episodes, Params, Prompts, Scores


class PendingGrades(Protocol):
    """Grades that are being computed."""

    def result(self) -> list[Grade]:
        """Waits for the grades; those that are late are `timeout`."""
        ...


class Grader(Protocol):
    """The part of tasks.grading.pool.Pool that a rollout uses."""

    def submit(
        self, task_name: str, items: Sequence[tuple[Problem, str]], cut: Sequence[bool]
    ) -> PendingGrades:
        """Starts to grade answers; `cut` is True for answers cut at their length limit."""
        ...


class Clock:
    """Wall time between events, in seconds."""

    def __init__(self):
        self.last = time.monotonic()

    def lap(self) -> float:
        """The time since the last call."""
        before, self.last = self.last, time.monotonic()
        return self.last - before


@dataclass(frozen=True, kw_only=True)
class Graded:
    """This host's rows of a rollout as texts and grades."""

    attempts: list[tuple[str, ...]]  # per row, one text per turn
    grades: list[tuple[Grade | None, ...]]  # per row, one grade per turn; None: it lacks the turn
    seconds: dict[str, float] = field(default_factory=dict)  # wall time per phase


def attempt_texts(
    chat: Chat, episodes: Episodes, turns: Sequence[int] | None = None
) -> list[tuple[str, ...]]:
    """Each row's attempts as text, up to the first stop token, which is left out.

    Args:
      turns: their numbers; None: all.
    """
    stops = frozenset(chat.stops)
    if turns is None:
        turns = range(1, episodes.present.shape[1] + 1)

    def text(ids: np.ndarray) -> str:
        return chat.decode(list(takewhile(lambda token: token not in stops, ids.tolist())))

    rows = zip(np.asarray(episodes.tokens), np.asarray(episodes.turn), strict=True)
    return [tuple(text(row[owner == turn]) for turn in turns) for row, owner in rows]


def reward_array(grades: Sequence[Sequence[Grade | None]]) -> np.ndarray:
    """Rewards f32[B R]."""
    return np.asarray([[g.reward if g else 0.0 for g in row] for row in grades], np.float32)


def repetitions(grades: Sequence[Sequence[Grade | None]], roles: Sequence[str]) -> np.ndarray:
    """1.0 where a turn's final answer is one that its dialogue has given before: f32[B R]."""

    def row(turns: Sequence[Grade | None]) -> list[float]:
        own = zip(turns, roles, strict=True)
        answers = [turn.extracted if turn and role == "answer" else None for turn, role in own]
        return [float(a is not None and a in answers[:n]) for n, a in enumerate(answers)]

    return np.asarray([row(turns) for turns in grades], np.float32)


def graded_columns(
    grades: Sequence[Sequence[Grade | None]], roles: Sequence[str], repeat_penalty: float
) -> dict[str, np.ndarray]:
    """The fields of Episodes that follow from grades."""
    columns = {"rewards": reward_array(grades)}
    if repeat_penalty:
        columns["shaping"] = -repeat_penalty * repetitions(grades, roles)
    return columns


class Grading:
    """Grades every turn of this host's rows as it is drawn, each by its problem's own task.

    In a turn that was cut, only a final answer that is complete before the cut counts.
    """

    def __init__(self, encoder: Encoder, grader: Grader):
        self.encoder, self.grader = encoder, grader
        self.attempts: list[list[str]] = []  # per row, one text per turn so far
        self.pending: list[tuple[list[tuple[int, int]], PendingGrades]] = []  # (row, turn) of each

    def submit(self, problems: Sequence[Problem], episodes: Episodes, turns: int) -> None:
        """Starts to grade the turns that were not known before.

        Args:
          problems: one per row.
          episodes: numpy arrays.
          turns: that are finished; those after them are not read.
        """
        self.attempts = self.attempts or [[] for _ in problems]
        known = len(self.attempts[0]) if self.attempts else 0
        texts = attempt_texts(self.encoder.chat, episodes, range(known + 1, turns + 1))
        for own, more in zip(self.attempts, texts, strict=True):
            own += more
        answers: dict[str, list[tuple[int, int]]] = defaultdict(list)  # (row, turn) by task
        for row, turn in np.argwhere(episodes.present[:, :turns]).tolist():
            if turn >= known and self.encoder.plan.roles[turn] == "answer":
                answers[self.encoder.task(problems[row]).name].append((row, turn))
        for name, places in answers.items():
            answer = self.encoder.chat.answer
            items = [(problems[row], answer(self.attempts[row][turn])) for row, turn in places]
            cut = [bool(episodes.truncated[place]) for place in places]
            self.pending.append((places, self.grader.submit(name, items, cut)))

    def result(self, episodes: Episodes) -> Graded:
        """Waits for the grades of whole dialogues, and judges the turns that verify."""
        turns = self.encoder.plan.turns
        table: list[list[Grade | None]] = [[None] * turns for _ in self.attempts]
        for places, grades in self.pending:
            for (row, turn), grade in zip(places, grades.result(), strict=True):
                table[row][turn] = grade
        answered = [list(row) for row in table]
        for row, turn in np.argwhere(episodes.present).tolist():
            if self.encoder.plan.roles[turn] == "verify":
                judged = next(grade for grade in reversed(answered[row][:turn]) if grade)
                text = self.encoder.chat.answer(self.attempts[row][turn])
                table[row][turn] = grade_judgement(text, judged)
        return Graded(
            attempts=[tuple(row) for row in self.attempts], grades=[tuple(row) for row in table]
        )


def grade_rollout(
    encoder: Encoder, grader: Grader, problems: Sequence[Problem], episodes: Episodes
) -> Graded:
    """Grades every turn of whole dialogues.

    Args:
      problems: one per row.
      episodes: numpy arrays.
    """
    grading = Grading(encoder, grader)
    grading.submit(problems, episodes, encoder.plan.turns)
    return grading.result(episodes)


def merge_grades(
    parts: Sequence[tuple[Sequence[int], Sequence[tuple[Grade | None, ...]]]],
) -> dict[int, tuple[Grade | None, ...]]:
    """Chooses one grade for each turn of each row, where several hosts hold the row.

    Hosts that split a model between them (`tensor`) grade the same answers, and one may time
    out where another does not. All of them must train on the same reward.

    Args:
      parts: per host its row indices and their grades. The first grade counts, or where that
        is in UNGRADED the first one that is not.

    Returns:
      The grades of every row, by row index.
    """

    def open_case(grade: Grade | None) -> bool:
        return grade is not None and grade.verdict in UNGRADED

    found: dict[int, tuple[Grade | None, ...]] = {}
    for rows, graded in parts:
        for row, grades in zip(rows, graded, strict=True):
            known = found.get(row, grades)
            found[row] = tuple(
                b if open_case(a) and not open_case(b) else a
                for a, b in zip(known, grades, strict=True)
            )
    return found


def grading_metrics(
    encoder: Encoder, problems: Sequence[Problem], graded: Graded
) -> dict[str, Metric]:
    """Verdicts over all turns, what changed, and where tasks are mixed, numbers by task.

    Args:
      problems: one per row.
    """
    verdicts = [grade.verdict for row in graded.grades for grade in row if grade is not None]
    found = {
        f"verdict/{verdict}": mean(float(verdicts.count(verdict)), float(len(verdicts)))
        for verdict in VERDICTS
    }
    found |= change_metrics(encoder.plan.roles, graded)
    names = sorted({task.name for task in encoder.tasks.values()})
    for name in names if len(names) > 1 else ():
        rows_of_all = zip(graded.grades, problems, strict=True)
        own = [grades for grades, problem in rows_of_all if encoder.task(problem).name == name]
        there = np.asarray([[float(g is not None) for g in row] for row in own])
        shape = (-1, encoder.plan.turns)
        right = reward_array(own).reshape(shape) >= 1.0
        counts = there.reshape(shape).sum(0)
        found[f"task/{name}/accuracy"] = mean(right.sum(0, dtype=float), counts)
        found[f"task/{name}/reward"] = mean(reward_array(own).reshape(shape).sum(0), counts)
    return found


def change_metrics(roles: Sequence[str], graded: Graded) -> dict[str, Metric]:
    """What differs between a dialogue's first answer and its last: the answer, and the text.

    A dialogue of one answer counts as unchanged, and has no edit distance.
    """
    changed, distances = [], []
    for texts, grades in zip(graded.attempts, graded.grades, strict=True):
        table = zip(texts, grades, roles, strict=True)
        answers = [(text, grade) for text, grade, role in table if grade and role == "answer"]
        if answers:
            (first, before), (last, after) = answers[0], answers[-1]
            changed.append(before.extracted != after.extracted)
        if len(answers) > 1:
            distances.append(edit_distance_ratio(first, last))
    return {
        "answer_changed": mean(float(sum(changed)), float(len(changed))),
        "edit_distance": mean(float(sum(distances)), float(len(distances))),
    }


def sampling_metrics(episodes: Episodes, draft_tokens: int) -> dict[str, Metric]:
    """What the sampling program made of the positions that it computed, and of its guesses.

    Args:
      episodes: numpy arrays.
      draft_tokens: of SamplingConfig.
    """
    effort = episodes.effort
    if effort is None:
        return {}
    drawn, computed = np.sum(episodes.sampled), np.sum(effort.computed)
    found = {"sample/useful": mean(float(drawn), float(computed))}
    if draft_tokens:
        guessed = draft_tokens * np.sum(effort.drafted)
        found["sample/guessed_right"] = mean(float(np.sum(effort.accepted)), float(guessed))
    return found


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a rollout's groups were chosen from (rl.selection)."""

    batches: list[Episodes]  # this host's rows of each batch that was drawn, as numpy, graded
    signal: list[bool]  # whether each group of all hosts has one, in the order of draws


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Graded dialogues on the devices, and the same rows on this host."""

    episodes: Episodes  # global device arrays, rewards set
    scores: Scores | None  # None: the rollout is not learnt from
    local: Episodes  # this host's rows as numpy
    problems: list[Problem]  # of this host's rows
    graded: Graded
    choice: Choice | None = None  # None: all that was drawn is here

    @property
    def drawn(self) -> list[Episodes]:
        """This host's rows of every batch that was drawn."""
        return self.choice.batches if self.choice else [self.local]


class Sampler(Protocol):
    """What draws a plan's rows: jitted programs here, or a script in a test."""

    def __call__(self, params: Params, prompts: Prompts, key: Key[Array, ""], /) -> Episodes:
        """Draws whole dialogues with prepared parameters; a key of `keys.run_key`."""
        ...

    def by_turn(
        self, params: Params, prompts: Prompts, key: Key[Array, ""], /
    ) -> Sequence[Episodes]:
        """The dialogues after each turn that is drawn; the last are whole."""
        ...


@dataclass(frozen=True, kw_only=True)
class RolloutPrograms:
    """The device programs of a rollout, and the transfers between host and devices."""

    encoder: Encoder
    to_global: Callable  # this host's rows -> global arrays
    own_rows: Callable  # rows that all hosts hold -> the part of this host
    prepare: Callable[[Params], Params]  # params -> params as `sample` takes them
    sample: Callable[..., Sequence[Episodes]]  # `Sampler.by_turn`
    score: Callable[..., Scores | None]  # (reference_params, episodes)
    repeat_penalty: float = 0.0  # of the objective


def problems_of_rows(
    draws: np.ndarray, problems: Sequence[Problem], episodes: Episodes
) -> list[Problem]:
    """The problem of each row, found by its draw."""
    by_draw = dict(zip(np.asarray(draws).tolist(), problems, strict=True))
    return [by_draw[draw] for draw in np.asarray(episodes.ids.draw).tolist()]


def collect_rollout(
    programs: RolloutPrograms,
    grader: Grader,
    *,
    params: Params,
    reference: Params,
    key: Key[Array, ""],
    draws: np.ndarray,
    problems: Sequence[Problem],
    indices: Sequence[int] | np.ndarray | None = None,
    policy_step: int = 0,
    begin: Callable[[str], None] = lambda phase: None,
    meanwhile: Callable[[], None] = lambda: None,
    clock: Clock | None = None,
) -> Rollout:
    """Samples, grades and scores one batch of problems.

    Args:
      key: of `keys.run_key`.
      draws: ordinals of the problems in the run's stream.
      indices: of the problems in their data set.
      policy_step: updates of the policy so far.
      begin: is called with the name of each phase.
      meanwhile: is called while the devices draw.
      clock: its laps are the phases; drawing begins with the end of the lap before.
    """
    clock = clock or Clock()
    begin("sample")
    prompts = programs.encoder.prompts(problems, draws, indices=indices, policy_step=policy_step)
    *earlier, episodes = programs.sample(programs.prepare(params), programs.to_global(prompts), key)
    meanwhile()
    grading, turns = Grading(programs.encoder, grader), programs.encoder.plan.turns
    for finished, snapshot in zip(programs.encoder.plan.drawn, earlier, strict=False):
        local = local_rows(snapshot)  # while the next turn is drawn
        grading.submit(problems_of_rows(draws, problems, local), local, finished)
    local = local_rows(episodes)
    seconds = {"sample": clock.lap()}
    row_problems = problems_of_rows(draws, problems, local)
    begin("grade")
    grading.submit(row_problems, local, turns)
    scores = programs.score(reference, episodes)
    graded = grading.result(local)
    begin("share verdicts")
    rows = programs.own_rows(np.arange(len(episodes.tokens))).tolist()
    merged = merge_grades(processes.all_gather_objects((rows, graded.grades)))
    seconds["grade"] = clock.lap()
    graded = replace(graded, grades=[merged[row] for row in rows], seconds=seconds)
    roles = programs.encoder.plan.roles
    columns = graded_columns(graded.grades, roles, programs.repeat_penalty)
    return Rollout(
        episodes=episodes.replace(**programs.to_global(columns)),
        scores=scores,
        local=local.replace(**columns),
        problems=row_problems,
        graded=graded,
    )
