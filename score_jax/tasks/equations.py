"""The embedded task: linear equations, answered with a check by substitution.

"7x+16=128" is answered "x=16:7*16=112+16=128": a guess and its check. The grader reads
only the last "x=" of an attempt.
"""

import re

from score_jax.records import Grade, Problem, Task

SOLUTION = re.compile(r"x=(\d+)(?!\d)")


def grade(problem: Problem, attempt: str) -> Grade:
    """Compares the last "x=" of an attempt with the gold answer."""
    found = SOLUTION.findall(attempt)
    if not found:
        return Grade(verdict="unparsable", reward=0.0, detail="no x= with a number")
    if f"x={found[-1]}" == problem.answer:
        return Grade(verdict="correct", reward=1.0, extracted=found[-1])
    return Grade(verdict="wrong", reward=0.0, extracted=found[-1])


TASK = Task(
    name="equations",
    prompt=lambda problem: problem.prompt,
    instruction="There might be an error. Please correct it.",
    grade=grade,
)
