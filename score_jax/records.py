"""Records that are passed between processes: problems, grades, tasks, transcripts.

This module never imports jax: grading workers import it, and a worker that
initialised jax would wait on the accelerator's lock. The pytrees that live on
devices are in `types.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Verdict = Literal["correct", "wrong", "unparsable", "timeout", "crashed"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
UNGRADED = ("timeout", "crashed")  # may depend on the machine's load: a retry may differ


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem with the data that its grader needs."""

    id: str  # unique within a data set
    prompt: str  # the problem statement, before the task's template is applied
    answer: str = ""  # gold answer; empty where tests decide
    worked: str = ""  # a worked answer for supervised training; no prompt or grader sees it
    tests: tuple[str, ...] = ()  # assertions for programs; empty where the answer decides
    shown: tuple[str, ...] = ()  # the tests that a prompt may show; only the grader sees the rest
    task: str = ""  # name in tasks.registry; "": the task of the config
    # First attempts that come with it (another model's, or drawn earlier): texts or token ids.
    given: tuple[str | tuple[int, ...], ...] = ()
    location: str = ""  # "file:line" of its JSONL row; "" for other sources

    def contents(self) -> dict[str, Any]:
        """The fields that RL and evaluation use, without what depends on the file's path."""
        unused = ("location", "worked")
        fields = {name: value for name, value in vars(self).items() if name not in unused}
        return fields | {"id": self.id.removeprefix(self.location)}

    @property
    def label(self) -> str:
        """Location and id of the problem, for messages."""
        if self.location in ("", self.id):
            return self.id
        return f"{self.location} ({self.id})"


@dataclass(frozen=True)
class Part:
    """A part of a worked attempt, and whether its tokens are trained on."""

    text: str
    learn: bool = True


@dataclass(frozen=True)
class WorkedDialogue:
    """A worked example for supervised training; an attempt is a tuple of parts."""

    problem: Problem
    attempts: tuple[tuple[Part, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Grade:
    """A grader's result for one attempt."""

    verdict: Verdict
    reward: float  # 0..1; 1 only with `correct`; values between are partial credit
    extracted: str | None = None  # the final answer as read from the attempt; None: none was found
    detail: str = ""  # one line: why a program failed, which check decided


@dataclass(frozen=True, kw_only=True)
class Task:
    """How problems of one kind are prompted, prompted for a correction, and graded."""

    name: str
    prompt: Callable[[Problem], str]  # the first user message; reach it through `ask`
    instruction: str  # the user message before every later attempt; never feedback on the attempt
    grade: Callable[[Problem, str], Grade]  # module-level, pure, importable without jax
    # For the self-test at start-up: a response that states the gold answer (None: the bare
    # answer is one), and (problem, response, verdict) cases that the grader must get right.
    gold_response: Callable[[Problem], str] | None = None
    self_test_cases: tuple[tuple[Problem, str, Verdict], ...] = ()
    shows_tests: bool = False  # its prompts are incomplete without `Problem.shown`

    def ask(self, problem: Problem) -> str:
        """The first user message for a problem.

        The prompt is built from a copy of the problem without answers and hidden tests, so
        that they can't leak to the model.

        Raises:
          ValueError: the problem was made for another task, or shows no tests where this
            task's prompts need them.
        """
        if problem.task not in ("", self.name):
            raise ValueError(
                f"config.task is {self.name!r}; problem {problem.id!r} belongs to the task "
                f"{problem.task!r}: set config.task, or data.task, so that they agree"
            )
        if self.shows_tests and problem.tests and not problem.shown:
            raise ValueError(
                f"problem {problem.id!r} has no shown tests, and the prompts of the task "
                f"{self.name!r} need some: list them in its field shown "
                "(data.fields.shown='tests' shows all), or choose another task"
            )
        return self.prompt(replace(problem, answer="", worked="", tests=()))


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """One dialogue as it is stored and displayed. Tuples hold one value per turn."""

    step: int  # optimiser updates before it was sampled
    problem: str  # Problem.id
    task: str = ""  # that asked and graded it
    prompt: str
    answer: str
    attempts: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    rewards: tuple[float, ...]
    lengths: tuple[int, ...]  # tokens, the stop token included
    truncated: tuple[bool, ...]
    extracted: tuple[str | None, ...]
