"""Differences of whole numbers, answered with a number alone.

For models that were taught the form by a warm-up: neither prompt nor instruction describes it.
"""

import re

from score_jax.records import Grade, Problem, Task, Verdict
from score_jax.tasks.grading import last_number

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
EXAMPLE = Problem(id="subtraction/known", prompt="5312 - 478 =", answer="4834")


def grade(problem: Problem, attempt: str) -> Grade:
    """Compares the last number with the gold answer, digit by digit.

    Commas between digits count for nothing; leading zeros and decimals make an answer wrong.
    """
    found = [number.rstrip(",").replace(",", "") for number in NUMBER.findall(attempt)]
    return last_number.grade(found, problem.answer, "no number")


SELF_TEST_CASES: tuple[tuple[Problem, str, Verdict], ...] = (
    (EXAMPLE, "4834", "correct"),
    (EXAMPLE, "5312 - 478 = 4,834.", "correct"),
    (EXAMPLE, "4834, or 4844", "wrong"),
    (EXAMPLE, "four thousand", "unparsable"),
)
TASK = Task(
    name="subtraction",
    prompt=lambda problem: problem.prompt,
    instruction="There might be an error. Please correct it.",
    grade=grade,
    self_test_cases=SELF_TEST_CASES,
)
