"""The grading worker: reads answers from a pipe, grades them, writes grades to a pipe.

`process.py` runs it as `python -m score_jax.tasks.grading.worker`, not as a
multiprocessing child, which would import the trainer's main module again. Importing jax is
blocked, because a second process that initialises the accelerator waits on its lock. Both
pipes carry JSON lines, not pickles, so that model output cannot execute in the trainer.
"""

import ctypes
import importlib
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable

from score_jax.records import Grade, Problem

BARRED = ("jax", "jaxlib", "flax", "optax", "orbax", "libtpu", "torch", "tensorflow")
MEMORY_BYTES = 4 << 30  # limit on the address space of one worker
KEPT_CHARACTERS = 500  # of an extracted answer or a detail that are sent back
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

GradeFunction = Callable[[Problem, str], Grade]

LAST_LINE_ENDS = re.compile(r"(?:^[ \t]*(?:`{3,}|~{3,})|\[DONE\])[ \t]*\Z", re.MULTILINE)


class _Barrier:
    """An import hook that blocks the accelerator's libraries."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in BARRED:
            raise ImportError(f"a grading worker must not import {name}")


def task_module(name: str) -> str:
    """Returns the module of a task: its name if that has a dot, else one of score_jax.tasks."""
    return name if "." in name else f"score_jax.tasks.{name}"


def grade_or_crash(
    grade: GradeFunction, problem: Problem, response: str, *, cut: bool = False
) -> Grade:
    """Grades one answer; an exception of the grader becomes the verdict `crashed`.

    Args:
      cut: the response was truncated at its length limit.
    """
    try:
        return grade_cut(grade, problem, response) if cut else grade(problem, response)
    except Exception as error:  # the package's only broad catch: a worker outlives its answers
        return Grade(verdict="crashed", reward=0.0, detail=f"{type(error).__name__}: {error}")


def grade_cut(grade: GradeFunction, problem: Problem, response: str) -> Grade:
    """Grades a truncated response; an answer that may be incomplete is `unparsable`.

    An answer is complete if the grader extracts the same when more text follows. "x=1" may
    be the start of "x=17"; an unterminated line and an unfinished program are incomplete too.
    """
    given = grade(problem, response)
    if given.verdict not in ("correct", "wrong"):
        return given
    for longer in _continued(problem, response):
        other = grade(problem, longer)
        if given.extracted is None:
            closed = other.verdict == given.verdict
        else:
            closed = other.extracted == given.extracted
        if not closed:
            detail = "cut off before its answer was closed"
            return Grade(verdict="unparsable", reward=0.0, detail=detail)
    return given


def _continued(problem: Problem, response: str) -> list[str]:
    """Possible continuations of a truncated response.

    A digit extends a number, a word or a formula, and a brace closes one. As the grader of
    programs drops a last line that does not parse, that line is also replaced by another.
    """
    if LAST_LINE_ENDS.search(response):
        response += "\n"
    if problem.tests:
        return [response + "7", response[: response.rfind("\n") + 1] + "7"]
    return [response + "7", response + "7}"]


def load_grader(name: str) -> GradeFunction:
    """Imports a task's grader and grades a dummy answer.

    The dummy loads libraries that the grader imports on first use, before the first deadline
    starts.

    Raises:
      ImportError: there is no such module.
      AttributeError: the module has no TASK.
    """
    grade = importlib.import_module(task_module(name)).TASK.grade
    grade_or_crash(grade, Problem(id="warm-up", prompt="", answer="2"), "Final Answer: 2")
    return grade


def _write(descriptor: int, message: object) -> None:
    data = json.dumps(message).encode("ascii") + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]


def _grade_line(line: bytes, graders: dict[str, GradeFunction], output: int) -> None:
    """Grades one request; the first reply is whether the grader could be loaded."""
    request = json.loads(line)
    name = request["task"]
    try:
        grade = graders.get(name) or graders.setdefault(name, load_grader(name))
    except (ImportError, AttributeError, SyntaxError) as error:
        _write(output, {"failed": f"{type(error).__name__}: {error}"[:KEPT_CHARACTERS]})
        return
    _write(output, {"loaded": name})
    for fields, response, cut in request["items"]:
        problem = Problem(
            **{**fields, "tests": tuple(fields["tests"]), "shown": tuple(fields["shown"])}
        )
        given = grade_or_crash(grade, problem, response, cut=cut)
        extracted = given.extracted
        if extracted is not None:
            extracted = extracted[:KEPT_CHARACTERS]
        _write(
            output,
            [given.verdict, float(given.reward), extracted, given.detail[:KEPT_CHARACTERS]],
        )


def _claim_pipes() -> tuple[int, int]:
    """Reserves stdin and stdout for the protocol, so that no library reads or writes them."""
    requests, output = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return requests, output


def main() -> None:
    """Serves requests until the pool closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer handles Ctrl-C
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # Reaps orphans of a sandbox here, as a container's init may not do it.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.meta_path.insert(0, _Barrier())
    requests, output = _claim_pipes()
    graders: dict[str, GradeFunction] = {}
    with os.fdopen(requests, "rb") as lines:
        _write(output, {"ready": os.getpid()})
        for line in lines:
            _grade_line(line, graders, output)


if __name__ == "__main__":
    main()
