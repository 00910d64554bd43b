"""Dialogues side by side: marks, escaping, outcomes."""

import re

import pytest
from markupsafe import Markup, escape

from score_jax.records import Transcript
from score_jax.report.dialogues import make_cards, mark_changes, outcome_of


def dialogue(problem="p", attempts=("a", "b"), verdicts=("wrong", "correct")) -> Transcript:
    count = len(attempts)
    return Transcript(
        step=0,
        problem=problem,
        prompt="prompt",
        answer="b",
        attempts=attempts,
        verdicts=verdicts,
        rewards=(0.0,) * count,
        lengths=(1,) * count,
        truncated=(False,) * count,
        extracted=attempts,
    )


def test_changed_words_are_marked_and_the_rest_is_not():
    marked, kind = mark_changes("x = 3, so 7*3 = 21", "x = 4, so 7*4 = 28")
    assert kind == "edited"
    assert marked == (
        "x = <del>3</del><ins>4</ins>, so 7*<del>3</del><ins>4</ins> = <del>21</del><ins>28</ins>"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("if a < b:\n  return 1", "if a <= b:\n  return 2"),
        ("one two three four", "one 2 three four five"),
        ("a\n" * 900, "a\n" * 450 + "b\n" + "a\n" * 450),
        ("", "all new"),
    ],
)
def test_without_its_marks_the_text_is_the_second_attempt(before, after):
    marked, _ = mark_changes(before, after)
    kept = re.sub(r"<del>.*?</del>", "", str(marked), flags=re.S)
    assert re.sub(r"</?ins>", "", kept) == str(escape(after))


def test_copies_and_rewritten_texts_carry_no_marks():
    assert mark_changes("same", "same") == (Markup("same"), "copy")
    text, kind = mark_changes("first we add the numbers", "<script>alert(1)</script>")
    assert kind == "rewritten" and "<" not in text


def test_model_text_is_escaped_in_every_kind_of_change():
    for before in ("", "<b>x</b> y", "<b>x</b> z"):
        marked, _ = mark_changes(before, "<b>x</b> y")
        assert "<b>" not in marked and "&lt;" in marked


@pytest.mark.parametrize(
    ("verdicts", "outcome"),
    [
        (("wrong", "correct"), "fixed"),
        (("correct", "timeout"), "broken"),
        (("unparsable", "crashed"), "missed"),
        (("correct", "correct"), "kept"),
        (("wrong", "wrong", "correct"), "fixed"),
    ],
)
def test_outcome_compares_first_and_last(verdicts, outcome):
    attempts = tuple("a" for _ in verdicts)
    assert outcome_of(dialogue(attempts=attempts, verdicts=verdicts)) == outcome


def test_cards_join_models_by_problem_and_take_the_last_models_outcome():
    cards = make_cards(
        {
            "base": [dialogue("p", verdicts=("wrong", "wrong")), dialogue("only base")],
            "stage2": [dialogue("q", verdicts=("correct", "wrong")), dialogue("p")],
        },
        per_outcome=5,
    )
    assert [(card.problem, card.outcome) for card in cards] == [("p", "fixed"), ("q", "broken")]
    assert [column.model for column in cards[0].columns] == ["Base model", "Stage II"]
    assert [column.outcome for column in cards[0].columns] == ["missed", "fixed"]
    assert [column.model for column in cards[1].columns] == ["Stage II"]


def test_cards_are_cut_per_outcome():
    rows = [dialogue(str(n)) for n in range(9)] + [dialogue("k", verdicts=("correct", "correct"))]
    cards = make_cards({"m": rows}, per_outcome=3)
    assert [card.problem for card in cards] == ["0", "1", "2", "k"]


def test_no_dialogues_give_no_cards():
    assert make_cards({"base": []}, per_outcome=3) == []
