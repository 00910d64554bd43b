"""Where a supervised stage's rows come from: the config's examples section.

Worked dialogues of an embedded task; the answers that come with the problems (a warm-up); or
kept rollouts that a filter by name lets through (STaR), or that are paired with other right
answers (Pair-SFT). `dialogue.trained` says which
turns carry loss.

Source: arXiv:2409.12917, section 4.
"""

from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from score_jax.checks import Share, unmet
from score_jax.data import procedural, store
from score_jax.data.procedural import Procedural
from score_jax.data.store import StoredDialogue
from score_jax.data.stream import Stream
from score_jax.distributed import processes
from score_jax.records import Part, Problem, Task, WorkedDialogue
from score_jax.rl.dialogue import Encoder, TooLong
from score_jax.stages import rollouts
from score_jax.stages.problem_sets import gold_response
from score_jax.stages.settings import Settings
from score_jax.types import Episodes

Examples = Callable[[int], Episodes]  # a step -> its rows over all hosts, as numpy arrays
PAIRS = {"pairs": (False,), "pairs_and_right": (False, True)}  # firsts that are kept: right?


class NothingKeptError(ValueError):
    """A filter keeps none of the dialogues that were collected."""


def load(
    settings: Settings, encoder: Encoder, workdir: Path, problems: Sequence[Problem]
) -> Examples:
    """The rows of each step.

    Args:
      problems: of the stage; source "answers" learns those that come with them.

    Raises:
      ValueError: the section is invalid, or no dialogue is left.
    """
    options = dict(settings.examples)
    worked = {name: partial(worked_dialogues, task) for name, task in procedural.TASKS.items()}
    makers: dict[str, Callable[..., Examples]] = {
        **worked,
        "answers": partial(worked_answers, problems),
        "rollouts": stored_rollouts,
    }
    source = options.pop("source", "")
    if source not in makers:
        raise ValueError(f"examples.source is {source!r}; choose one of {', '.join(makers)}")
    try:
        return makers[source](settings, encoder, workdir, **options)
    except TypeError as error:
        raise ValueError(f"config.examples with source {source!r}: {error}") from error


def worked_dialogues(
    task: Procedural,
    settings: Settings,
    encoder: Encoder,
    _: Path,
    *,
    careful: float = 0.8,
    careful_at_last: float = 0.12,
    settling: float = 0.2,
    right: float = 0.25,
) -> Examples:
    """Worked dialogues made for each step.

    Args:
      careful: share of careful second attempts (receipts: of their sites), before `settling`.
      careful_at_last: the same share during `settling`.
      settling: the last steps, as a share of all.
      right: share of right first attempts; wrong ones have no loss.
    """
    for name, value in (
        ("careful", careful),
        ("careful_at_last", careful_at_last),
        ("settling", settling),
        ("right", right),
    ):
        if requirement := unmet(Share, value):
            raise ValueError(f"examples.{name} is {value!r}; set {requirement}")

    def make(step: int) -> Episodes:
        settled = step >= settings.steps * (1 - settling)
        dialogues = task.dialogues(
            np.random.default_rng([settings.seed, step]),
            settings.batch,
            careful=careful_at_last if settled else careful,
            right=right,
        )
        return encoder.worked(dialogues, encoder.row_length(settings.sampling.row_limit))

    return make


def worked_answers(
    problems: Sequence[Problem],
    settings: Settings,
    encoder: Encoder,
    _: Path,
    *,
    close: bool = True,
    mistaken: float = 0.0,
) -> Examples:
    """The problems' own answers as attempts, in a new order in each epoch.

    Every turn of the config has the answer: what is learnt of first attempts alone spoils second
    ones. Where all first attempts are right, second ones are soon their copies; those that are
    mistaken show that an attempt may be wrong.

    An answer is Problem.worked, closed by the gold answer in the form that the task asks for;
    without a worked answer it is the latter alone. Problems whose answers are too long for a turn
    are left out if data.skip_long is set.

    Args:
      close: whether the gold answer follows a worked one.
      mistaken: share of dialogues that begin with another answer than the problem's, which has no
        loss; drawn anew at each step.

    Raises:
      TooLong: an answer is too long, and data.skip_long is not set.
      ValueError: close is no bool, `mistaken` no share, of a single turn or of answers that are
        all alike, or no answer is short enough.
    """
    turns, length = settings.plan.turns, encoder.row_length(settings.sampling.row_limit)
    if not isinstance(close, bool):
        raise ValueError(f"examples.close is {close!r}; set True or False")
    if (requirement := unmet(Share, mistaken)) or (mistaken and turns == 1):
        raise ValueError(
            f"examples.mistaken is {mistaken!r} with {turns} turns of objective.reward_weights; "
            f"set {requirement or 'two turns or more, or 0'}"
        )
    dialogues = [
        WorkedDialogue(problem, ((Part(text),),) * turns)
        for problem in problems
        for text in [answer_text(encoder.task(problem), problem, close)]
    ]
    short = those_that_fit(dialogues, settings, encoder, length)
    texts = sorted({dialogue.attempts[0][0].text for dialogue in short})
    if mistaken and len(texts) == 1:
        raise ValueError(
            f"examples.mistaken is {mistaken!r}, but all {len(short)} answers are alike; set 0"
        )
    stream = Stream(short, batch=settings.batch, seed=settings.seed)

    def make(step: int) -> Episodes:
        stream.position = step
        rng = np.random.default_rng([settings.seed, step])
        chosen = stream.next()[2]
        for row in np.flatnonzero(rng.random(len(chosen)) < mistaken).tolist():
            other = begun_otherwise(chosen[row], texts, rng)
            if fits(encoder, other, length, skip=True):
                chosen[row] = other
        return encoder.worked(chosen, length)

    return make


def begun_otherwise(
    dialogue: WorkedDialogue, texts: Sequence[str], rng: np.random.Generator
) -> WorkedDialogue:
    """The dialogue behind another answer in the place of the first, which carries no loss.

    Args:
      texts: all answers, sorted, each once; two or more.
    """
    first, *later = dialogue.attempts
    place = int(rng.integers(len(texts) - 1))
    place += place >= bisect(texts, first[0].text) - 1  # past its own
    return replace(dialogue, attempts=((Part(texts[place], learn=False),), *later))


def answer_text(task: Task, problem: Problem, close: bool) -> str:
    """The text that a problem's answer is learnt as."""
    gold = gold_response(task, problem)
    parts = [problem.worked.strip(), gold if close or not problem.worked.strip() else ""]
    if not any(parts):
        raise ValueError(
            f"problem {problem.id!r} has no answer to learn; give its field answer, or worked"
        )
    return "\n".join(filter(None, parts))


def those_that_fit(
    dialogues: Sequence[WorkedDialogue], settings: Settings, encoder: Encoder, length: int
) -> list[WorkedDialogue]:
    """The dialogues that have room in a row; the others are told, or stop the run.

    Raises:
      TooLong: one has no room, and data.skip_long is not set.
      ValueError: none has.
    """
    skip = bool(dict(settings.data).get("skip_long"))
    short = [dialogue for dialogue in dialogues if fits(encoder, dialogue, length, skip=skip)]
    if left := len(dialogues) - len(short):
        processes.log(
            f"[{settings.name}] {left} of {len(dialogues)} answers are too long for "
            f"sampling.turn_limit {settings.sampling.turn_limit} and are left out"
        )
    if not short:
        raise ValueError(
            f"sampling.turn_limit is {settings.sampling.turn_limit}; every answer is longer: "
            "raise it"
        )
    return short


def fits(encoder: Encoder, dialogue: WorkedDialogue, length: int, *, skip: bool) -> bool:
    """Whether a dialogue has room in a row; without `skip` TooLong is raised where it has not."""
    try:
        encoder.worked([dialogue], length)
    except TooLong:
        if not skip:
            raise
        return False
    return True


def stored_rollouts(
    settings: Settings,
    encoder: Encoder,
    workdir: Path,
    *,
    stage: str = "",
    path: str = "",
    keep: str = "wrong_then_right",
) -> Examples:
    """Kept dialogues, in a new order in each epoch.

    Args:
      stage: of the workdir, whose rollouts are read.
      path: a folder of rollouts instead.
      keep: of store.FILTERS or PAIRS.
    """
    if bool(stage) == bool(path):
        raise ValueError(f"examples.stage is {stage!r} and examples.path {path!r}; set one of them")
    if keep not in (*store.FILTERS, *PAIRS):
        choices = ", ".join((*store.FILTERS, *PAIRS))
        raise ValueError(f"examples.keep is {keep!r}; choose one of {choices}")
    folder = Path(path) if path else workdir / stage / rollouts.NAME

    @cache  # at the first step: an earlier stage of the run may have to collect them
    def kept() -> tuple[Stream[StoredDialogue], int]:
        read = store.read(folder)
        paired = keep in PAIRS
        found = pairs(read, PAIRS[keep], settings.seed) if paired else store.keep(read, keep)
        dialogues = list(found)
        if processes.any_process(not dialogues):  # so that all hosts raise
            raise NothingKeptError(
                f"examples.keep is {keep!r}; none of the dialogues in {folder} is: collect more, "
                "or choose another filter"
            )
        turns = {len(dialogue.present) for dialogue in dialogues}
        if turns != {settings.plan.turns}:
            raise ValueError(
                f"objective.reward_weights is {settings.objective.reward_weights}, one value per "
                f"turn, but dialogues in {folder} have {', '.join(map(str, sorted(turns)))} turns; "
                "set as many values, or collect such dialogues"
            )
        longest = max(len(dialogue.tokens) for dialogue in dialogues)
        length = max(longest, encoder.row_length(settings.sampling.row_limit))
        return Stream(dialogues, batch=settings.batch, seed=settings.seed), length

    def take(step: int) -> Episodes:
        stream, length = kept()
        stream.position = step
        _, _, chosen = stream.next()
        return rollouts.learn_turns(rollouts.as_episodes(chosen, length), settings.plan.trained)

    return take


def pairs(
    dialogues: Iterable[StoredDialogue], kinds: Sequence[bool], seed: int
) -> list[StoredDialogue]:
    """First attempts, each followed by a random right answer to the same problem.

    Args:
      kinds: whether first attempts that are wrong (False) or right (True) are taken.

    Source: Pair-SFT as in arXiv:2409.12917, section 4, after Welleck et al. 2023.
    """
    known = list(dialogues)
    answers: dict[str, list[np.ndarray]] = defaultdict(list)
    for dialogue in known:
        for turn in np.flatnonzero(dialogue.rewards == 1).tolist():
            answers[dialogue.problem].append(dialogue.tokens[dialogue.turn == turn + 1])
    rng, out = np.random.default_rng(seed), []
    for dialogue in known:
        corrected = bool((dialogue.turn == 2).any())  # else nothing says what stands between
        if not corrected or bool(dialogue.rewards[0] == 1) not in kinds:
            continue
        if right := answers[dialogue.problem]:
            out.append(with_second(dialogue, right[int(rng.integers(len(right)))]))
    return out


def with_second(dialogue: StoredDialogue, answer: np.ndarray) -> StoredDialogue:
    """A dialogue whose second attempt is another one; nobody has drawn it."""
    start = int(np.argmax(dialogue.turn == 2))
    size = start + len(answer)
    turn = np.concatenate([dialogue.turn[:start], np.full(len(answer), 2, np.int32)])
    return replace(
        dialogue,
        tokens=np.concatenate([dialogue.tokens[:start], answer]),
        turn=turn,
        sampled=np.zeros(size, bool),
        trained=np.zeros(size, bool),
        logprobs=np.zeros(size, np.float32),
    )
