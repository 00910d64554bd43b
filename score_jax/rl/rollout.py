"""One rollout: encodes problems, samples dialogues, grades every turn, scores the reference.

Grading runs in worker processes. Meanwhile the device scores the dialogues under the
reference model, which needs no rewards.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Protocol

import numpy as np

from score_jax.distributed import processes
from score_jax.distributed.sharding import local_rows
from score_jax.records import UNGRADED, VERDICTS, Grade, Problem, Task, Transcript
from score_jax.text.chat import Chat
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


@dataclass(frozen=True, kw_only=True)
class Graded:
    """This host's rows of a rollout as texts and grades."""

    attempts: list[tuple[str, ...]]  # per row, one text per turn
    grades: list[tuple[Grade, ...]]  # per row, one grade per turn
    seconds: dict[str, float] = field(default_factory=dict)  # wall time per phase


def encode_prompts(
    chat: Chat, task: Task, draws: np.ndarray, problems: Sequence[Problem], limit: int
) -> Prompts:
    """Encodes problems, with their ordinals in the stream, as right-padded rows.

    Raises:
      ValueError: a prompt is longer than the limit.
    """
    tokens = np.zeros((len(problems), limit), np.int32)
    lengths = np.zeros(len(problems), np.int32)
    for row, problem in enumerate(problems):
        ids = chat.encode_prompt(task.ask(problem))
        if len(ids) > limit:
            raise ValueError(
                f"sampling.prompt_limit is {limit}; problem {problem.id!r} has {len(ids)} tokens: "
                "raise the limit or leave the problem out"
            )
        tokens[row, : len(ids)] = ids
        lengths[row] = len(ids)
    columns: dict[str, Any] = {  # numpy until they are made global
        "tokens": tokens,
        "length": lengths,
        "draw": np.asarray(draws, np.int32),
    }
    return Prompts(**columns)


def attempt_texts(chat: Chat, episodes: Episodes, turns: int) -> list[tuple[str, ...]]:
    """Each row's attempts as text, up to the first stop token, which is left out."""
    tokens, turn = np.asarray(episodes.tokens), np.asarray(episodes.turn)
    stops = frozenset(chat.stops)

    def going_on(token: int) -> bool:
        return token not in stops

    texts = []
    for row, owner in zip(tokens, turn, strict=True):
        turns_ids = (row[owner == number].tolist() for number in range(1, turns + 1))
        texts.append(tuple(chat.decode(list(takewhile(going_on, ids))) for ids in turns_ids))
    return texts


def group_by_row(values: Sequence, turns: int) -> list[tuple]:
    """Splits a flat list into tuples of `turns` values, one per row."""
    return [tuple(values[i : i + turns]) for i in range(0, len(values), turns)]


def reward_array(grades: Sequence[Sequence[Grade]]) -> np.ndarray:
    """Rewards f32[B R]."""
    return np.asarray([[grade.reward for grade in row] for row in grades], np.float32)


def grade_rollout(
    chat: Chat,
    task: Task,
    grader: Grader,
    problems: Sequence[Problem],
    episodes: Episodes,
    meanwhile: Callable[[], None] = lambda: None,
) -> Graded:
    """Grades every turn of this host's rows.

    In a turn that was cut, only a final answer that is complete before the cut counts.

    Args:
      problems: one per group of G adjacent rows.
      episodes: numpy arrays.
      meanwhile: is called while the grades are computed.
    """
    start = time.monotonic()
    turns = episodes.rewards.shape[1]
    group_size = len(episodes.tokens) // len(problems)
    attempts = attempt_texts(chat, episodes, turns)
    items = [
        (problems[row // group_size], text) for row, texts in enumerate(attempts) for text in texts
    ]
    pending = grader.submit(task.name, items, np.asarray(episodes.truncated).ravel().tolist())
    meanwhile()
    grades = group_by_row(pending.result(), turns)
    return Graded(attempts=attempts, grades=grades, seconds={"grade": time.monotonic() - start})


def merge_grades(
    parts: Sequence[tuple[Sequence[int], Sequence[tuple[Grade, ...]]]],
) -> dict[int, tuple[Grade, ...]]:
    """Chooses one grade for each turn of each row, where several hosts hold the row.

    Hosts that split a model between them (`tensor`) grade the same answers, and one may time
    out where another does not. All of them must train on the same reward.

    Args:
      parts: per host its row indices and their grades. The first grade counts, or where that
        is in UNGRADED the first one that is not.

    Returns:
      The grades of every row, by row index.
    """
    found: dict[int, tuple[Grade, ...]] = {}
    for rows, graded in parts:
        for row, grades in zip(rows, graded, strict=True):
            known = found.get(row, grades)
            found[row] = tuple(
                b if a.verdict in UNGRADED and b.verdict not in UNGRADED else a
                for a, b in zip(known, grades, strict=True)
            )
    return found


def transcripts(
    task: Task,
    problems: Sequence[Problem],
    episodes: Episodes,
    graded: Graded,
    *,
    step: int,
    rows: Sequence[int],
) -> list[Transcript]:
    """Transcripts of the given rows; `episodes` are numpy arrays."""
    group_size = len(graded.attempts) // len(problems)
    turns = range(1, episodes.rewards.shape[1] + 1)
    out = []
    for row in rows:
        problem, grades = problems[row // group_size], graded.grades[row]
        out.append(
            Transcript(
                step=step,
                problem=problem.id,
                prompt=task.ask(problem),
                answer=problem.answer,
                attempts=graded.attempts[row],
                verdicts=tuple(grade.verdict for grade in grades),
                rewards=tuple(grade.reward for grade in grades),
                lengths=tuple(int((episodes.turn[row] == turn).sum()) for turn in turns),
                truncated=tuple(bool(cut) for cut in episodes.truncated[row]),
                extracted=tuple(grade.extracted for grade in grades),
            )
        )
    return out


def grading_metrics(graded: Graded) -> dict[str, float]:
    """Shares of verdicts over all turns, and the share of rows whose final answer changed."""
    counts = Counter(grade.verdict for row in graded.grades for grade in row)
    total = max(1, sum(counts.values()))
    metrics = {f"verdict/{verdict}": counts[verdict] / total for verdict in VERDICTS}
    changed = [row[0].extracted != row[-1].extracted for row in graded.grades]
    metrics["answer_changed"] = float(np.mean(changed))
    return metrics


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Graded dialogues on the devices, and the same rows on this host."""

    episodes: Episodes  # global device arrays, rewards set
    scores: Scores
    local: Episodes  # this host's rows as numpy
    graded: Graded


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The device programs of a rollout, and the transfers between host and devices."""

    to_global: Callable  # this host's rows -> global arrays
    own_rows: Callable  # rows that all hosts hold -> the part of this host
    prepare: Callable[[Params], Params]  # params -> params as `sample` takes them
    sample: Callable[..., Episodes]  # (prepared params, prompts, key)
    score: Callable[..., Scores]  # (reference_params, episodes)


def collect_rollout(
    sampler: Sampler,
    chat: Chat,
    task: Task,
    grader: Grader,
    *,
    params: Params,
    reference: Params,
    key: object,
    draws: np.ndarray,
    problems: Sequence[Problem],
    prompt_limit: int,
    begin: Callable[[str], None] = lambda phase: None,
) -> Rollout:
    """Samples, grades and scores one batch of problems.

    Args:
      key: of `keys.run_key`.
      draws: ordinals of the problems in the run's stream.
      begin: is called with the name of each phase.
    """
    start = time.monotonic()
    begin("sample")
    prompts = encode_prompts(chat, task, draws, problems, prompt_limit)
    episodes = sampler.sample(sampler.prepare(params), sampler.to_global(prompts), key)
    local = local_rows(episodes)
    sampled = time.monotonic()
    scores: list[Scores] = []
    begin("grade")
    graded = grade_rollout(
        chat,
        task,
        grader,
        problems,
        local,
        meanwhile=lambda: scores.append(sampler.score(reference, episodes)),
    )
    begin("share verdicts")
    rows = sampler.own_rows(np.arange(len(episodes.tokens))).tolist()
    merged = merge_grades(processes.all_gather_objects((rows, graded.grades)))
    seconds = {"sample": sampled - start, **graded.seconds}
    graded = replace(graded, grades=[merged[row] for row in rows], seconds=seconds)
    rewards = reward_array(graded.grades)
    return Rollout(
        episodes=episodes.replace(rewards=sampler.to_global(rewards)),
        scores=scores[0],
        local=local.replace(rewards=rewards),
        graded=graded,
    )
