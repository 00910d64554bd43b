"""The grader of equations on answers as a policy writes them."""

import pytest

from score_jax.records import Problem
from score_jax.tasks.equations import TASK

PROBLEM = Problem(id="7x+16=128", prompt="7x+16=128", answer="x=16")


@pytest.mark.parametrize(
    ("attempt", "verdict", "extracted"),
    [
        ("x=16:7*16=112+16=128", "correct", "16"),
        ("x=17:7*17=119+16=135", "wrong", "17"),
        ("x=17:7*17=119+16=135check135-7=128,7/7=1,17-1,x=16:7*16=112+16=128", "correct", "16"),
        ("x=16:7*16=112+16=128,x=15", "wrong", "15"),  # the last one counts
        ("x=16", "correct", "16"),
        ("x=161", "wrong", "161"),
        ("x=1", "wrong", "1"),
        ("x=016", "wrong", "016"),
        ("x=16x=", "correct", "16"),
        ("xx==16", "unparsable", None),
        ("x = 16", "unparsable", None),
        ("x=-16", "unparsable", None),
        ("16", "unparsable", None),
        ("", "unparsable", None),
        ("x=", "unparsable", None),
        ("x=16\n\x00⁇", "correct", "16"),
        ("7x=16", "correct", "16"),  # it reads no further back than the letter
    ],
)
def test_the_last_stated_solution_decides(attempt, verdict, extracted):
    grade = TASK.grade(PROBLEM, attempt)
    assert (grade.verdict, grade.extracted) == (verdict, extracted)
    assert grade.reward == float(verdict == "correct")


def test_digits_of_other_scripts_are_no_numbers_of_ours():
    assert TASK.grade(PROBLEM, "x=\N{ARABIC-INDIC DIGIT ONE}\N{ARABIC-INDIC DIGIT SIX}").reward == 0


def test_the_prompt_is_the_equation_and_the_instruction_gives_no_feedback():
    assert TASK.prompt(PROBLEM) == "7x+16=128"
    assert not any(letter.isdigit() for letter in TASK.instruction)
