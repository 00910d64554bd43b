"""Plain records that cross a process border: problems, grades, tasks, transcripts.

This module never imports jax: grading workers import it, and a worker that
touched jax would wait on the accelerator's lock. The pytrees that live on
devices are in `types.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Verdict = Literal["correct", "wrong", "unparsable", "timeout", "crashed"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
UNGRADED = ("timeout", "crashed")  # not the answer's fault alone: another time it may be another


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem with what its grader needs."""

    id: str  # unique within a data set
    prompt: str  # the problem's own text, before the task's prompt is put around it
    answer: str = ""  # gold answer; empty where tests decide
    tests: tuple[str, ...] = ()  # programs' assertions; empty where the answer decides
    shown: tuple[str, ...] = ()  # those of them that a prompt may show; the rest is the grader's
    task: str = ""  # name in tasks.registry; "": the one that the config names
    place: str = ""  # where it was read, "file:line"; "": in no file that people edit

    def contents(self) -> dict[str, Any]:
        """Its fields, but for what depends on where its file lies."""
        fields = {name: value for name, value in vars(self).items() if name != "place"}
        return fields | ({"id": ""} if self.place and self.id == self.place else {})

    @property
    def named(self) -> str:
        """What people find it by."""
        if self.place in ("", self.id):
            return self.id
        return f"{self.place} ({self.id})"


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What a grader says of one attempt."""

    verdict: Verdict
    reward: float  # 0..1; 1 only with `correct`, between for partial credit
    extracted: str | None = None  # the final answer as read from the attempt; None: none was found
    detail: str = ""  # one line for people: why a program failed, which check decided


@dataclass(frozen=True, kw_only=True)
class Task:
    """How problems of one kind are asked, asked again, and graded."""

    name: str
    prompt: Callable[[Problem], str]  # the first user message; reach it through `ask`
    instruction: str  # the user message before every later attempt; never feedback on the attempt
    grade: Callable[[Problem, str], Grade]  # module-level, pure, importable without jax
    # What the start-up self-test needs: a response that states the gold answer (None: the
    # answer alone is one), and (problem, response, verdict) cases that the grader must get right.
    gold_response: Callable[[Problem], str] | None = None
    self_test_cases: tuple[tuple[Problem, str, Verdict], ...] = ()
    shows_tests: bool = False  # its prompts are not to be understood without `Problem.shown`

    def ask(self, problem: Problem) -> str:
        """The first user message for a problem.

        The prompt is made of a problem without answer and tests, so that nothing which
        decides the verdict can reach a model.

        Raises:
          ValueError: the problem was made for another task, or shows no tests where this
            task's prompts need them.
        """
        if problem.task not in ("", self.name):
            raise ValueError(
                f"config.task is {self.name!r}; problem {problem.id!r} is of the task "
                f"{problem.task!r}: set config.task, or data.task, so that they agree"
            )
        if self.shows_tests and problem.tests and not problem.shown:
            raise ValueError(
                f"problem {problem.id!r} lets no prompt show its tests, and the task {self.name!r} "
                "asks with some: name them in its field shown (data.fields.shown='tests': all), or "
                "choose another task"
            )
        return self.prompt(replace(problem, answer="", tests=()))


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """One dialogue as people and files see it. Tuples hold one value per turn."""

    step: int  # optimiser updates before it was sampled
    problem: str  # Problem.id
    prompt: str
    answer: str
    attempts: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    rewards: tuple[float, ...]
    lengths: tuple[int, ...]  # tokens, the stop token included
    truncated: tuple[bool, ...]
    extracted: tuple[str | None, ...]
