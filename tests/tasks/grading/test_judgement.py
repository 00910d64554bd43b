"""What a text says of an answer, and whether that is true."""

import pytest

from score_jax.records import Grade
from score_jax.tasks.grading.judgement import grade_judgement, read_judgement

RIGHT = Grade(verdict="correct", reward=1.0, extracted="7")
PARTLY = Grade(verdict="wrong", reward=0.5, extracted="8")
WRONG = Grade(verdict="wrong", reward=0.0, extracted="9")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The answer is correct.", True),
        ("WRONG", False),
        ("This is not correct.", False),
        ("That is not\n wrong", True),
        ("yes", True),
        ("No.", False),
        ("incorrect", False),
        ("It looks right, but 3*4 is 12: wrong.", False),  # the last word counts
        ("At first wrong; on second thought it is right.", True),
        ("Is the claim true or false? false", False),
        ("", None),
        ("I am unsure.", None),
        ("correctly rightful noble wrongs", None),  # whole words only
    ],
)
def test_the_last_word_that_says_so_decides(text, said):
    assert read_judgement(text) is said


@pytest.mark.parametrize(
    ("text", "judged", "verdict", "extracted"),
    [
        ("correct", RIGHT, "correct", "right"),
        ("not correct", RIGHT, "wrong", "wrong"),
        ("wrong", WRONG, "correct", "wrong"),
        ("right", WRONG, "wrong", "right"),
        ("wrong", PARTLY, "correct", "wrong"),  # partial credit is no right answer
        ("right", PARTLY, "wrong", "right"),
    ],
)
def test_a_judgement_is_paid_for_being_true(text, judged, verdict, extracted):
    got = grade_judgement(text, judged)
    assert (got.verdict, got.reward, got.extracted) == (
        verdict,
        float(verdict == "correct"),
        extracted,
    )


@pytest.mark.parametrize("judged", [RIGHT, WRONG])
def test_saying_nothing_is_never_paid(judged):
    got = grade_judgement("Let me see", judged)
    assert (got.verdict, got.reward, got.extracted) == ("unparsable", 0.0, None)
    assert got.detail == "says neither right nor wrong"
