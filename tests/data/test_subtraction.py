"""Differences have the answers and digits that their texts say, and splits share none."""

import re

import pytest

from score_jax.data import sources, subtraction
from score_jax.tasks import registry


@pytest.mark.parametrize("digits", [1, 3, 18])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_answers_are_those_of_the_texts(split, digits):
    found = sources.load(source="subtraction", split=split, count=100, digits=digits)[:]
    for problem in found:
        text = re.fullmatch(r"(\d+) - (\d+) =", problem.prompt)
        larger, smaller = map(int, text.groups())
        assert len(text[1]) == len(text[2]) == digits and larger >= smaller
        assert int(problem.answer) == larger - smaller and problem.task == "subtraction"


def test_splits_share_no_problem_and_a_seed_gives_an_order():
    texts = {
        split: {p.prompt for p in subtraction.problems(split, 500, 0, 2)[:]}
        for split in ("train", "validation", "test")
    }
    assert not texts["train"] & texts["test"] and not texts["validation"] & texts["test"]
    first, again, other = (
        [p.prompt for p in subtraction.problems("train", 20, seed, 3)[:]] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len({p.id for p in subtraction.problems("train", 50, 0, 3)[:]}) == 50


@pytest.mark.parametrize("digits", [0, 19, 2.5, True])
def test_digits_that_no_number_has_are_refused(digits):
    with pytest.raises(ValueError, match=rf"data.digits is {digits}; set a whole number from 1"):
        sources.load(source="subtraction", digits=digits)


@pytest.mark.parametrize(
    ("attempt", "verdict"),
    [
        ("35", "correct"),
        ("The difference is 35.", "correct"),
        ("135 - 100 = 35", "correct"),
        ("35,", "correct"),
        ("3,5", "correct"),
        ("35.0", "wrong"),
        ("035", "wrong"),
        ("-35", "wrong"),
        ("35, no: 36", "wrong"),
        ("", "unparsable"),
    ],
)
def test_the_last_number_is_the_answer(attempt, verdict):
    problem = subtraction.problems("train", 1, 0, 3)[0]
    task = registry.get("subtraction")
    known = type(problem)(id="x", prompt="135 - 100 =", answer="35", task="subtraction")
    found = task.grade(known, attempt)
    assert (found.verdict, found.reward) == (verdict, float(verdict == "correct"))
    assert task.ask(problem) == problem.prompt
