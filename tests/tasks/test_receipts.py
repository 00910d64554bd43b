"""The grader of receipts on answers as a policy writes them."""

import pytest

from score_jax.records import Problem
from score_jax.tasks.receipts import TASK

PROBLEM = Problem(id="47*8+36*7", prompt="47*8+36*7", answer="628")


@pytest.mark.parametrize(
    ("attempt", "verdict", "extracted"),
    [
        ("376+252=628", "correct", "628"),
        ("376+252=618", "wrong", "618"),
        ("376+252=6281", "wrong", "6281"),
        ("376+252=62", "wrong", "62"),
        ("111+222=628", "correct", "628"),  # the products are not read
        ("(32,56)376+(21,42)252(08,12,06)=628", "correct", "628"),
        ("(32,56)376+(21,42)252(08,12,06)628", "unparsable", None),
        ("376+252(06,28,628)=618", "wrong", "618"),  # nor is what stands in brackets
        ("376+252=618,376+252=628", "correct", "628"),  # the last one counts
        ("376+252=628=", "correct", "628"),
        ("=0628", "wrong", "0628"),
        ("=-628", "unparsable", None),
        ("= 628", "unparsable", None),
        ("628", "unparsable", None),
        ("", "unparsable", None),
        ("=\N{ARABIC-INDIC DIGIT SIX}", "unparsable", None),
    ],
)
def test_the_last_stated_total_decides(attempt, verdict, extracted):
    grade = TASK.grade(PROBLEM, attempt)
    assert (grade.verdict, grade.extracted) == (verdict, extracted)
    assert grade.reward == float(verdict == "correct")


def test_the_prompt_is_the_receipt_and_the_instruction_gives_no_feedback():
    assert TASK.prompt(PROBLEM) == "47*8+36*7"
    assert not any(letter.isdigit() for letter in TASK.instruction)
