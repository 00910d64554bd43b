"""Options of multiple-choice questions in the forms of public data sets."""

import pytest

from score_jax.data import options

NAME = {"options": "options", "answer": "answer"}
LINES = "Q?\n\nA. one\nB. two\nC. three"


@pytest.mark.parametrize(
    "found",
    [
        ["one", "two", "three"],
        {"A": "one", "B": "two", "C": "three"},
        {"A": "one", "B": "two", "C": "three", "D": None},
        {"label": ["A", "B", "C"], "text": ["one", "two", "three"]},
        [
            {"label": "A", "text": "one"},
            {"label": "B", "text": "two"},
            {"label": "C", "text": "three"},
        ],
        [
            {"key": "A", "value": "one"},
            {"key": "B", "value": "two"},
            {"key": "C", "value": "three"},
        ],
    ],
)
@pytest.mark.parametrize("answer", [1, "B", "two", " two "])
def test_every_form_of_options_and_answer_gives_the_same_letter(found, answer):
    row, prompt = options.lettered("f:1", {"options": found, "answer": answer}, NAME, "Q?\n")
    assert row["answer"] == "B" and prompt == LINES


def test_labels_that_are_numbers_are_labels_not_places():
    found = {"label": ["1", "2", "3"], "text": ["one", "two", "three"]}
    row, prompt = options.lettered("f:1", {"options": found, "answer": "2"}, NAME, "Q?")
    assert row["answer"] == "B" and prompt == LINES


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ({"label": ["1", "2", "3"], "text": ["one", "two", "three"]}, 2),  # its label, or the third
        (["B", "A", "AB", "O"], "A"),  # the blood group, or the first
        (["1", "0"], 0),
        (["one", "one"], "one"),
    ],
)
def test_an_answer_that_can_be_read_in_two_ways_is_refused(found, answer):
    with pytest.raises(ValueError, match=r"which is 2 of the \d in 'options'"):
        options.lettered("f:1", {"options": found, "answer": answer}, NAME, "Q?")


def test_unless_options_are_asked_for_a_row_stays_as_it_is():
    row = {"options": ["one", "two"], "answer": "4"}
    assert options.lettered("f:1", row, NAME | {"options": ""}, "2 + 2") == (row, "2 + 2")
    with pytest.raises(ValueError, match="'choices' must be 2 to 26 texts"):
        options.lettered("f:1", row, NAME | {"options": "choices"}, "2 + 2")


@pytest.mark.parametrize("answer", [3, -1, True, None, "D", "four", 0.5])
def test_an_answer_that_is_no_option_is_named(answer):
    row = {"options": ["one", "two", "three"], "answer": answer}
    with pytest.raises(
        ValueError, match=r"f:1: 'answer' is .*, which is 0 of the 3 in 'options'; write the number"
    ):
        options.lettered("f:1", row, NAME, "Q?")


@pytest.mark.parametrize(
    "found", ["A) one", [], ["one"], ["one", " "], ["one", 2], {"A": "one"}, 3]
)
def test_options_of_another_form_are_named(found):
    with pytest.raises(ValueError, match=r"f:1: 'options' must be 2 to 26 texts"):
        options.lettered("f:1", {"options": found, "answer": 0}, NAME, "Q?")
