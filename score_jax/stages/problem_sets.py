"""Loads the training, validation and evaluation problems of a config and checks them.

Two faults are looked for before training: a prompt longer than its limit, and a gold answer
that the task's own grader rejects. They stop the run, or with `data.skip_long` and
`data.skip_bad` those problems are left out and counted. The first host encodes and grades
for all, and caches the results in the workdir under a hash of the contents, so that a
resumed run has the same problems.
"""

import hashlib
import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from score_jax.data import sources
from score_jax.distributed import processes
from score_jax.records import UNGRADED, Grade, Problem, Task
from score_jax.report.json_files import read_json, write_json
from score_jax.rl.dialogue import SAMPLED, DialoguePlan, Encoder
from score_jax.stages.log import open_bar
from score_jax.stages.sections import GradingConfig
from score_jax.stages.settings import Settings
from score_jax.tasks import registry
from score_jax.tasks.grading.pool import Pool
from score_jax.text.chat import Chat

FILE = "preflight.json"  # in the workdir
MAX_LISTED = 5  # problems listed in an error message
CHUNK = 64  # answers graded, or prompts encoded, between updates of the progress bar
REGRADINGS = 2  # most times that an answer without a verdict is graded again
BAR_DELAY_SECONDS = 2.0  # no progress bar for shorter work
GRADERS = Path(registry.__file__).parent


@dataclass(frozen=True, kw_only=True)
class ProblemSetSpec:
    """Where one set of problems comes from, and its task and limits."""

    part: str  # "training", "validation" or "evaluation"
    data: dict[str, Any]  # keyword arguments of data.sources.load
    count: int = 0  # number of problems, from the first; 0: all
    task: str
    task_field: str  # config field to name in errors about the task
    prompt_limit: int  # tokens
    limit_field: str  # config field to name in errors about the limit
    plan: DialoguePlan = SAMPLED  # complete, where attempts come with the problems

    def skips(self, name: str) -> bool:
        """Whether to leave problems with a fault out, instead of stopping the run.

        Args:
          name: "skip_long" or "skip_bad".

        Raises:
          ValueError: the field is neither True nor False.
        """
        value = self.data.get(name, False)
        if not isinstance(value, bool):
            raise ValueError(f"config.data.{name} is {value!r}; set True or False")
        return value


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """The problems that a run uses, and the ids of those left out."""

    part: str
    tasks: dict[str, Task]  # by Problem.task
    problems: Sequence[Problem]
    longest: int  # tokens of the longest prompt in `problems`
    prompt_limit: int  # tokens
    long: tuple[str, ...] = ()  # ids of problems left out: the prompt exceeds the limit
    bad: tuple[str, ...] = ()  # ids of problems left out: the grader rejects the gold answer

    @cached_property
    def by_task(self) -> dict[str, list[int]]:
        """Indices of the problems of each task, by the task's own name."""
        found: dict[str, list[int]] = {}
        for index, problem in enumerate(self.problems):
            found.setdefault(self.tasks[problem.task].name, []).append(index)
        return {name: found[name] for name in sorted(found)}

    def left_out(self) -> dict[str, tuple[str, ...]]:
        """Ids of the problems left out, by reason, as evaluation.json stores them."""
        return {"long": self.long, "bad": self.bad}

    def counts(self) -> dict[str, int]:
        """Numbers of problems used and left out, as run.json stores them."""
        return {"problems": len(self.problems), "long": len(self.long), "bad": len(self.bad)}

    def describe(self) -> str:
        """Formats the counts as one line."""
        names = ", ".join(self.by_task)
        used = f"{len(self.problems)} {self.part} problems of task {names}"
        left_out = f"{len(self.long)} too long and {len(self.bad)} with a bad gold answer left out"
        limit = f"longest prompt {self.longest} of {self.prompt_limit} tokens"
        return f"{used}, {limit}" + (f"; {left_out}" if self.long or self.bad else "")


def training_spec(settings: Settings) -> ProblemSetSpec:
    """The training problems: config.data."""
    return ProblemSetSpec(
        part="training",
        data=dict(settings.data),
        task=settings.task,
        task_field="config.task",
        prompt_limit=settings.sampling.prompt_limit,
        limit_field="config.sampling.prompt_limit",
        plan=settings.plan,
    )


def evaluation_spec(settings: Settings) -> ProblemSetSpec:
    """The evaluation problems: config.data with the overrides of config.evaluation.data."""
    has_own_limit = settings.evaluation.prompt_limit > 0
    return ProblemSetSpec(
        part="evaluation",
        data=settings.measured_data,
        count=settings.evaluation.problems,
        task=settings.measured_task,
        task_field="config.evaluation.task",  # where to set another task, even if it is unset
        prompt_limit=settings.measured_prompt_limit,
        limit_field="config.evaluation.prompt_limit"
        if has_own_limit
        else "config.sampling.prompt_limit",
        plan=settings.measured_plan,
    )


def validation_spec(settings: Settings) -> ProblemSetSpec:
    """The validation problems: config.data with the overrides of config.evaluation.validation."""
    config, held_out = settings.evaluation, evaluation_spec(settings)
    data = dict(settings.data)
    data.pop("first_attempts", None)  # as `measured_data`
    return replace(
        held_out,
        part="validation",
        data=data | dict(config.validation),
        count=config.validation_problems,
        task=settings.task,
        task_field="config.task",
    )


def read(spec: ProblemSetSpec) -> tuple[dict[str, Task], list[Problem]]:
    """Loads all of a set's problems, and their tasks by name.

    Raises:
      ValueError: the data can't be loaded, or no problem is of the config's task.
    """
    problems = list(sources.load(**spec.data)[: spec.count or None])
    return registry.of_problems(problems, spec.task, spec.task_field), problems


def select(
    spec: ProblemSetSpec,
    chat: Chat,
    grading: GradingConfig,
    workdir: Path,
    *,
    progress: bool = False,
) -> ProblemSet:
    """Loads a set and leaves out long prompts and bad gold answers; all hosts must call.

    Args:
      workdir: prompt lengths and gold faults are cached in its FILE.
      progress: show a progress bar after BAR_DELAY_SECONDS.

    Raises:
      ValueError: hosts have different problems; a prompt exceeds the limit without
        `skip_long`; a gold answer is rejected without `skip_bad`; or no problem is left.
    """
    tasks, problems = read(spec)
    texts = [tasks[problem.task].ask(problem) for problem in problems]
    graders = [grader_fingerprint(task) for task in tasks.values()]
    keys = [
        digest(chat_fingerprint(chat), [*texts, *given_texts(problems)]),
        digest(" ".join(graders), map(graded_fields, problems)),
    ]
    if len(set(map(tuple, processes.all_gather_objects(keys)))) > 1:
        raise ValueError(
            f"the hosts hold different {spec.part} problems, tokenizers or graders; give all "
            "the same files"
        )
    lengths: list[int] = []
    faults: dict[int, str] = {}
    cache = read_cache(workdir / FILE)
    if processes.is_first():
        lengths = cache.get(keys[0]) or prompt_lengths(chat, texts, progress=progress)
        if (cached := cache.get(keys[1])) is not None:
            faults = {int(index): fault for index, fault in cached.items()}
        else:
            faults = gold_faults(tasks, problems, grading, progress=progress)
    lengths, faults = processes.broadcast_from_first((lengths, faults))
    long = {index for index, length in enumerate(lengths) if length > spec.prompt_limit}
    if long and not spec.skips("skip_long"):
        raise ValueError(long_prompts_message(spec, problems, lengths))
    long |= long_attempts(spec, chat, tasks, problems)
    if faults and not spec.skips("skip_bad"):
        raise ValueError(bad_answers_message(spec, problems, faults))
    if processes.is_first():
        write_cache(workdir / FILE, {keys[0]: lengths, keys[1]: faults})
    used = [index for index in range(len(problems)) if index not in long and index not in faults]
    if not used:
        raise ValueError(
            f"{spec.limit_field} is {spec.prompt_limit}; no {spec.part} problem is left, "
            f"{len(long)} being too long and {len(faults)} with a bad gold answer: raise it, or "
            "repair the data"
        )
    return ProblemSet(
        part=spec.part,
        tasks=tasks,
        problems=[problems[index] for index in used],
        longest=max(lengths[index] for index in used),
        prompt_limit=spec.prompt_limit,
        long=tuple(problems[index].id for index in sorted(long)),
        bad=tuple(problems[index].id for index in sorted(faults)),
    )


def long_prompts_message(
    spec: ProblemSetSpec, problems: Sequence[Problem], lengths: Sequence[int]
) -> str:
    """Error message for prompts that exceed the limit; names the longest."""
    worst = max(range(len(lengths)), key=lengths.__getitem__)
    count = sum(length > spec.prompt_limit for length in lengths)
    return (
        f"{spec.limit_field} is {spec.prompt_limit}; problem {problems[worst].label!r} has "
        f"{lengths[worst]} tokens, the longest of {count} too long among {len(problems)} "
        f"{spec.part} prompts (median {statistics.median_low(lengths)}): raise the limit, or set "
        "config.data.skip_long=True to leave them out"
    )


def given_texts(problems: Sequence[Problem]) -> list[str]:
    """The attempts that come with problems, for a digest."""
    return [json.dumps(problem.given) for problem in problems if problem.given]


def long_attempts(
    spec: ProblemSetSpec, chat: Chat, tasks: Mapping[str, Task], problems: Sequence[Problem]
) -> set[int]:
    """Indices of the problems with a given attempt beyond the limit of its turn.

    Raises:
      ValueError: an attempt is too long without `skip_long`; a problem has fewer attempts than
        the dialogue takes, or has some in vain; or a token id is not the tokenizer's.
    """
    encoder = Encoder(chat=chat, tasks=tasks, plan=spec.plan, prompt_limit=spec.prompt_limit)
    turns = [turn for turn, source in enumerate(spec.plan.sources) if source == "given"]
    limits = [spec.plan.limits[turn] for turn in turns]
    long: set[int] = set()
    for index, problem in enumerate(problems):
        if len(problem.given) != len(turns):
            raise ValueError(
                f"config.data.first_attempts gives {spec.part} problem {problem.label!r} "
                f"{len(problem.given)} attempts, and {len(turns)} turns of its dialogue are given; "
                "set it together with 'given' in the dialogue's sources"
            )
        for turn, limit, attempt in zip(turns, limits, problem.given, strict=True):
            ids = encoder.attempt(attempt)
            if max(ids) >= chat.tokenizer.vocab_size:
                raise ValueError(
                    f"config.data.first_attempts gives problem {problem.label!r} the token id "
                    f"{max(ids)}; the tokenizer has {chat.tokenizer.vocab_size}"
                )
            size = len(ids) - 1  # a turn that was cut at its limit lacks the stop token
            if size > limit and not spec.skips("skip_long"):
                raise ValueError(
                    f"config.sampling.turn_limit is {limit} in turn {turn + 1}; the given attempt "
                    f"of {spec.part} problem {problem.label!r} has {size} tokens: raise the "
                    "limit, or set config.data.skip_long=True to leave such problems out"
                )
            long |= {index} if size > limit else set()
    return long


def bad_answers_message(
    spec: ProblemSetSpec, problems: Sequence[Problem], faults: dict[int, str]
) -> str:
    """Error message for gold answers that the grader rejects; lists the first MAX_LISTED."""
    listed = "; ".join(
        f"{problems[index].label}: {faults[index]}" for index in sorted(faults)[:MAX_LISTED]
    )
    more = f"; and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
    return (
        f"{spec.task_field} is {spec.task!r}, whose grader does not accept the gold answer of "
        f"{len(faults)} of {len(problems)} {spec.part} problems; repair them, or set "
        f"config.data.skip_bad=True to leave them out: {listed}{more}"
    )


def prompt_lengths(chat: Chat, texts: Sequence[str], *, progress: bool = False) -> list[int]:
    """Tokens of each prompt, encoded in threads (the tokenizer libraries release the GIL)."""

    def measure(part: Sequence[str]) -> list[int]:
        return [len(chat.encode_prompt(text)) for text in part]

    lengths: list[int] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        progress_bar("prompts", len(texts), progress) as bar,
    ):
        for chunk_lengths in threads.map(measure, chunks(texts)):
            lengths += chunk_lengths
            bar.update(len(chunk_lengths))
    return lengths


def gold_response(task: Task, problem: Problem) -> str:
    """A response that states the gold answer."""
    return task.gold_response(problem) if task.gold_response else problem.answer


def gold_faults(
    tasks: Mapping[str, Task],
    problems: Sequence[Problem],
    grading: GradingConfig,
    *,
    progress: bool = False,
) -> dict[int, str]:
    """Grades the gold answers; returns a description of each rejected one by problem index.

    Problems that have tests and no gold answer are skipped.
    """
    gold = {
        index: gold_response(tasks[problem.task], problem)
        for index, problem in enumerate(problems)
        if problem.answer or not problem.tests
    }
    grades: dict[int, Grade] = {}
    with open_pool(grading) as pool, progress_bar("gold answers", len(gold), progress) as bar:

        def grade(task: Task, chunk: Sequence[int]) -> None:
            items = [(problems[index], gold[index]) for index in chunk]
            grades.update(zip(chunk, pool.grade(task.name, items), strict=True))

        for name, task in tasks.items():
            own = [index for index in gold if problems[index].task == name]
            for chunk in chunks(own):
                grade(task, chunk)
                bar.update(len(chunk))
            # A timeout may come from a busy machine: grade those again, one at a time.
            for _ in range(REGRADINGS):
                for index in [n for n in own if grades[n].verdict in UNGRADED]:
                    grade(task, [index])
    return {
        index: f"{gold[index][-80:]!r} is graded {grades[index].verdict} "
        f"({grades[index].detail or 'no detail'})"
        for index in gold
        if grades[index].verdict != "correct"
    }


def open_pool(grading: GradingConfig) -> Pool:
    """Starts the grading workers of config.grading."""
    return Pool(
        grading.workers,
        deadline_seconds=grading.deadline_seconds,
        batch_deadline_seconds=grading.batch_deadline_seconds,
        recycle_after=grading.recycle_after,
        cache_size=grading.cache_size,
    )


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Splits a sequence into pieces of CHUNK values."""
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


def progress_bar(name: str, total: int, progress: bool) -> tqdm:
    """A progress bar that appears after BAR_DELAY_SECONDS and is erased at the end."""
    return open_bar(
        f"preflight: {name}", total, shown=progress, delay=BAR_DELAY_SECONDS, leave=False
    )


def digest(prefix: str, texts: Any) -> str:
    """SHA-256 of texts in order, each with its length, so that ["ab"] and ["a", "b"] differ."""
    hasher = hashlib.sha256()
    for text in (prefix, *texts):
        hasher.update(b"%d:" % len(data := text.encode()))
        hasher.update(data)
    return hasher.hexdigest()


def graded_fields(problem: Problem) -> str:
    """The fields of a problem that its grader reads, as JSON."""
    return json.dumps([problem.task, problem.prompt, problem.answer, problem.tests])


def chat_fingerprint(chat: Chat) -> str:
    """Fingerprint of what decides a prompt's length: the tokenizer and the chat format."""
    return digest(repr(chat.format), [chat.tokenizer.contents().hex()])


def grader_fingerprint(task: Task) -> str:
    """Fingerprint of what decides a verdict: the code of all graders and of the task's module."""
    task_module = Path(sys.modules[task.grade.__module__].__file__ or "")
    files = [*GRADERS.rglob("*.py"), task_module]
    return digest(task.name, [file.read_text(encoding="utf-8") for file in sorted(files)])


def read_cache(path: Path) -> dict[str, Any]:
    """Reads cached prompt lengths and gold faults, by hash of the contents."""
    return read_json(path) or {}


def write_cache(path: Path, entries: dict[str, Any]) -> None:
    """Adds new entries to the cache file."""
    cache = read_cache(path)
    if any(key not in cache for key in entries):
        with suppress(OSError):  # without the cache the next run only takes longer
            write_json(path, cache | entries)
