"""Tasks whose grader does as the response says."""

import os
import signal
import sys
import time

from score_jax.records import Grade, Problem, Task


def _grade(problem: Problem, response: str) -> Grade:
    if response == "hang":
        while True:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if response.startswith("sleep "):
        time.sleep(float(response.split()[1]))
    if response == "die":
        os._exit(3)
    if response == "raise":
        raise ValueError("as asked")
    if response == "jax":
        import jax  # noqa: F401
    if response == "modules":
        return Grade(verdict="wrong", reward=0.0, extracted=str("jax" in sys.modules))
    if response == "environment":
        return Grade(verdict="wrong", reward=0.0, extracted=" ".join(sorted(os.environ)))
    if response == "pid":
        return Grade(verdict="wrong", reward=0.0, extracted=str(os.getpid()))
    if response == "lie":
        return Grade(verdict="wrong", reward=1.0)
    if response == "print":
        print("noise")
        sys.stdout.flush()
    right = response == problem.answer
    return Grade(verdict="correct" if right else "wrong", reward=float(right), extracted=response)


TASK = Task(
    name="graders_for_tests",
    prompt=lambda problem: problem.prompt,
    instruction="Again.",
    grade=_grade,
)
