"""Word problems have the answers that their texts amount to."""

import re

import pytest

from score_jax.data import sources, word_problems


def worked(text):
    """A problem's answer, from the sentence rather than from what made it."""
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    total = numbers.pop(0)
    if "boxes" in text:
        total *= numbers.pop(0)
    if re.search(r"gets|finds", text):
        total += numbers.pop(0)
    if "gives" in text:
        total -= numbers.pop(0)
    assert not numbers, text
    return total


@pytest.mark.parametrize("split", word_problems.SPLITS)
def test_answers_are_those_of_the_texts(split):
    found = [word_problems.problems(split, 300, 1)[place] for place in range(300)]
    assert [int(p.answer) for p in found] == [worked(p.prompt) for p in found]
    assert all(0 < int(p.answer) < 100 and p.task == "words" for p in found)
    kinds = {re.sub(r"\d+|[A-Z]\w+|apples|books|coins|shells|pencils|stamps|cards|marbles", "", t)
             for t in (p.prompt for p in found)}  # fmt: skip
    assert len(kinds) == 5


def test_splits_share_no_text_and_a_seed_gives_an_order():
    texts = {
        split: {p.prompt for p in sources.load(source="words", split=split, count=400)[:]}
        for split in word_problems.SPLITS
    }
    assert not texts["train"] & texts["test"] and not texts["validation"] & texts["test"]
    first, again, other = (
        [p.prompt for p in word_problems.problems("train", 20, seed)[:]] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len({p.id for p in word_problems.problems("train", 50, 0)[:]}) == 50


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match=r"data.split is 'dev'; choose one of train"):
        word_problems.problems("dev", 1, 0)
