"""The second embedded task: receipts of two items, answered with their total.

"47*8+36*7" is answered "376+252=628". The grader reads the number behind the last equals
sign and nothing else; the work of a careful attempt has no such sign.
"""

import re

from score_jax.records import Grade, Problem, Task
from score_jax.tasks.grading import last_number

TOTAL = re.compile(r"=([0-9]+)")
EXAMPLE = Problem(id="47*8+36*7", prompt="47*8+36*7", answer="628")


def grade(problem: Problem, attempt: str) -> Grade:
    """Compares the number behind the last "=" that has one with the gold answer."""
    found = TOTAL.findall(attempt)
    return last_number.grade(found, problem.answer, "no = with a number")


TASK = Task(
    name="receipts",
    prompt=lambda problem: problem.prompt,
    instruction="There might be an error. Please correct it.",
    grade=grade,
    gold_response=lambda problem: f"={problem.answer}",
    self_test_cases=(
        (EXAMPLE, "376+252=628", "correct"),
        (EXAMPLE, "(32,56)376+252(08,12,06)=628", "correct"),
        (EXAMPLE, "376+252=628,376+252=618", "wrong"),
        (EXAMPLE, "376+252", "unparsable"),
    ),
)
