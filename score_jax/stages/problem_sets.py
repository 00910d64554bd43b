"""Which problems a config asks: read, of one task, measured, without those left out.

A prompt longer than its limit can't be asked, and a problem whose own gold answer its
grader refuses can't be learnt from. Both are found before anything is trained: they stop
the run, or are left out and counted where `data.skip_long` and `data.skip_bad` say so.
The first host encodes and grades, all act on what it found, and a file of the workdir
remembers it by contents, so that a resumed run asks the same problems.
"""

import hashlib
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from score_jax.data import sources
from score_jax.distributed import processes
from score_jax.records import UNGRADED, Grade, Problem, Task
from score_jax.report.json_files import read_json, write_json
from score_jax.stages.settings import GradingConfig, Settings
from score_jax.tasks import registry
from score_jax.tasks.grading.pool import Pool
from score_jax.text.chat import Chat

FILE = "preflight.json"  # of a workdir
TOLD = 5  # offenders that an error lists
CHUNK = 64  # answers graded, or prompts encoded, between two moves of the progress bar
AGAIN = 2  # times that an answer without a verdict is graded once more, alone
SHOWN_AFTER_SECONDS = 2.0  # what is done sooner needs no progress bar
GRADERS = Path(registry.__file__).parent


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A set of problems as a config describes it."""

    part: str  # "training", "validation" or "evaluation"
    data: dict[str, Any]  # keyword arguments of data.sources.load
    count: int = 0  # the first so many; 0: all
    task: str
    task_field: str
    prompt_limit: int  # tokens
    limit_field: str

    def skips(self, name: str) -> bool:
        """Whether problems with a fault are left out rather than refused.

        Raises:
          ValueError: the field is neither True nor False.
        """
        value = self.data.get(name, False)
        if not isinstance(value, bool):
            raise ValueError(f"config.data.{name} is {value!r}; set True or False")
        return value


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """The problems that are asked, and what was left out of the set."""

    part: str
    task: Task
    problems: Sequence[Problem]
    longest: int  # tokens of the longest prompt that is asked
    prompt_limit: int  # tokens
    long: tuple[str, ...] = ()  # ids of problems whose prompts pass the limit
    bad: tuple[str, ...] = ()  # ids of those whose gold answer is not accepted

    def left_out(self) -> dict[str, tuple[str, ...]]:
        """Ids of what is not asked, by the reason."""
        return {"long": self.long, "bad": self.bad}

    def counts(self) -> dict[str, int]:
        """What run.json says of it."""
        return {"problems": len(self.problems), "long": len(self.long), "bad": len(self.bad)}

    def describe(self) -> str:
        """One line for people."""
        kept = f"{len(self.problems)} {self.part} problems of task {self.task.name}"
        left = f"{len(self.long)} too long and {len(self.bad)} with a bad gold answer left out"
        limit = f"longest prompt {self.longest} of {self.prompt_limit} tokens"
        return f"{kept}, {limit}" + (f"; {left}" if self.long or self.bad else "")


def trained(settings: Settings) -> Wanted:
    """The problems of config.data."""
    return Wanted(
        part="training",
        data=dict(settings.data),
        task=settings.task,
        task_field="config.task",
        prompt_limit=settings.sampling.prompt_limit,
        limit_field="config.sampling.prompt_limit",
    )


def measured(settings: Settings) -> Wanted:
    """The held-out problems of config.data under config.evaluation.data."""
    own = settings.evaluation.prompt_limit
    return Wanted(
        part="evaluation",
        data=settings.measured_data,
        count=settings.evaluation.problems,
        task=settings.measured_task,
        task_field="config.evaluation.task",  # even where it is left to config.task: the remedy
        prompt_limit=settings.measured_prompt_limit,
        limit_field="config.evaluation.prompt_limit" if own else "config.sampling.prompt_limit",
    )


def validated(settings: Settings) -> Wanted:
    """The problems that are looked at while training goes on."""
    config, held_out = settings.evaluation, measured(settings)
    return replace(
        held_out,
        part="validation",
        data=dict(settings.data) | dict(config.validation),
        count=config.validation_problems,
        task=settings.task,
        task_field="config.task",
    )


def read(wanted: Wanted) -> tuple[Task, list[Problem]]:
    """The task and the problems of a set, nothing left out.

    Raises:
      ValueError: the data are at fault, or a problem is of another task.
    """
    problems = list(sources.load(**wanted.data)[: wanted.count or None])
    return registry.of_problems(problems, wanted.task, wanted.task_field), problems


def select(
    wanted: Wanted, chat: Chat, grading: GradingConfig, workdir: Path, *, progress: bool = False
) -> ProblemSet:
    """The problems of a set that can be asked and graded; all hosts must call.

    Args:
      workdir: its FILE remembers what was found.
      progress: show a bar where it takes longer than moments.

    Raises:
      ValueError: prompts pass the limit or gold answers are refused, and nothing says that
        such problems are left out; or none is left.
    """
    task, problems = read(wanted)
    texts = [task.ask(problem) for problem in problems]
    keys = [digest(marks(chat), texts), digest(grader_marks(task), map(contents, problems))]
    if len(set(map(tuple, processes.all_gather_objects(keys)))) > 1:
        raise ValueError(
            f"the hosts hold different {wanted.part} problems, tokenizers or graders; give all "
            "the same files"
        )
    lengths: list[int] = []
    faults: dict[int, str] = {}
    known = recall(workdir / FILE)
    if processes.is_first():
        lengths = known.get(keys[0]) or prompt_lengths(chat, texts, progress=progress)
        if (kept := known.get(keys[1])) is not None:
            faults = {int(place): fault for place, fault in kept.items()}
        else:
            faults = gold_faults(task, problems, grading, progress=progress)
    lengths, faults = processes.broadcast_from_first((lengths, faults))
    long = {place for place, length in enumerate(lengths) if length > wanted.prompt_limit}
    if long and not wanted.skips("skip_long"):
        raise ValueError(tell_long(wanted, problems, lengths))
    if faults and not wanted.skips("skip_bad"):
        raise ValueError(tell_bad(wanted, problems, faults))
    if processes.is_first():
        note(workdir / FILE, {keys[0]: lengths, keys[1]: faults})
    left = [place for place in range(len(problems)) if place not in long and place not in faults]
    if not left:
        raise ValueError(
            f"{wanted.limit_field} is {wanted.prompt_limit}; no {wanted.part} problem is left, "
            f"{len(long)} being too long and {len(faults)} with a bad gold answer: raise it, or "
            "repair the data"
        )
    return ProblemSet(
        part=wanted.part,
        task=task,
        problems=[problems[place] for place in left],
        longest=max(lengths[place] for place in left),
        prompt_limit=wanted.prompt_limit,
        long=tuple(problems[place].id for place in sorted(long)),
        bad=tuple(problems[place].id for place in sorted(faults)),
    )


def tell_long(wanted: Wanted, problems: Sequence[Problem], lengths: Sequence[int]) -> str:
    """The error of prompts that pass the limit."""
    worst = max(range(len(lengths)), key=lengths.__getitem__)
    count = sum(length > wanted.prompt_limit for length in lengths)
    return (
        f"{wanted.limit_field} is {wanted.prompt_limit}; problem {problems[worst].named!r} has "
        f"{lengths[worst]} tokens, the longest of {count} too long among {len(problems)} "
        f"{wanted.part} prompts (median {statistics.median_low(lengths)}): raise the limit, or set "
        "config.data.skip_long=True to leave them out"
    )


def tell_bad(wanted: Wanted, problems: Sequence[Problem], faults: dict[int, str]) -> str:
    """The error of gold answers that are not accepted."""
    told = "; ".join(f"{problems[place].named}: {faults[place]}" for place in sorted(faults)[:TOLD])
    more = f"; and {len(faults) - TOLD} more" if len(faults) > TOLD else ""
    return (
        f"{wanted.task_field} is {wanted.task!r}, whose grader does not accept the gold answer of "
        f"{len(faults)} of {len(problems)} {wanted.part} problems; repair them, or set "
        f"config.data.skip_bad=True to leave them out: {told}{more}"
    )


def prompt_lengths(chat: Chat, texts: Sequence[str], *, progress: bool = False) -> list[int]:
    """Tokens of each prompt; the tokenizers' libraries use all cores from threads."""

    def measure(part: Sequence[str]) -> list[int]:
        return [len(chat.encode_prompt(text)) for text in part]

    lengths: list[int] = []
    with ThreadPoolExecutor(os.cpu_count()) as threads, bar("prompts", len(texts), progress) as on:
        for found in threads.map(measure, chunks(texts)):
            lengths += found
            on.update(len(found))
    return lengths


def gold_faults(
    task: Task, problems: Sequence[Problem], grading: GradingConfig, *, progress: bool = False
) -> dict[int, str]:
    """What is wrong with gold answers, by the places of their problems.

    A problem that only tests decide has no gold answer to be tried. An answer that got no
    verdict is graded again alone: the machine may have been busy.
    """
    state = task.gold_response or (lambda problem: problem.answer)
    places = [n for n, problem in enumerate(problems) if problem.answer or not problem.tests]
    grades: dict[int, Grade] = {}
    with open_pool(grading) as pool, bar("gold answers", len(places), progress) as on:

        def grade(part: Sequence[int]) -> None:
            items = [(problems[place], state(problems[place])) for place in part]
            grades.update(zip(part, pool.grade(task.name, items), strict=True))

        for part in chunks(places):
            grade(part)
            on.update(len(part))
        for _ in range(AGAIN):
            for place in [n for n in places if grades[n].verdict in UNGRADED]:
                grade([place])
    return {
        place: f"{state(problems[place])[-80:]!r} is graded {found.verdict} "
        f"({found.detail or 'no detail'})"
        for place, found in grades.items()
        if found.verdict != "correct"
    }


def open_pool(grading: GradingConfig) -> Pool:
    """Grading workers as a config describes them."""
    return Pool(
        grading.workers,
        deadline_seconds=grading.deadline_seconds,
        batch_deadline_seconds=grading.batch_deadline_seconds,
        recycle_after=grading.recycle_after,
        cache_size=grading.cache_size,
    )


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """A sequence piece by piece."""
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


def bar(name: str, total: int, progress: bool) -> tqdm:
    """A progress bar that shows itself when it takes longer, and leaves nothing behind."""
    return tqdm(
        total=total,
        desc=f"preflight: {name}",
        disable=not progress,
        delay=SHOWN_AFTER_SECONDS,
        leave=False,
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 20,
    )


def digest(mark: str, texts: Any) -> str:
    """A name for contents: equal for equal texts in the same order, and for no others."""
    found = hashlib.sha256()
    for text in (mark, *texts):
        found.update(b"%d:" % len(data := text.encode()))
        found.update(data)
    return found.hexdigest()


def contents(problem: Problem) -> str:
    """What a problem's grader sees of it."""
    return json.dumps([problem.prompt, problem.answer, problem.tests])


def marks(chat: Chat) -> str:
    """What decides how long a text's prompt is: the tokenizer and the chat format."""
    return digest(repr(chat.format), [chat.tokenizer.contents().hex()])


def grader_marks(task: Task) -> str:
    """What decides a verdict: the code of the package's graders and of the task's own page."""
    own = Path(sys.modules[task.grade.__module__].__file__ or "")
    files = [*GRADERS.rglob("*.py"), own]
    return digest(task.name, [file.read_text(encoding="utf-8") for file in sorted(files)])


def recall(path: Path) -> dict[str, Any]:
    """What earlier runs in a workdir have found, by contents."""
    return read_json(path) or {}


def note(path: Path, found: dict[str, Any]) -> None:
    """Remembers what was found, beside what was known.

    Where that can't be written the next run looks again: nothing is lost but time.
    """
    known = recall(path)
    if any(key not in known for key in found):
        with suppress(OSError):
            write_json(path, known | found)
