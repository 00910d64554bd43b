"""Answers in Markdown, in headings, in prose and in other characters, on every task alike."""

import pytest

from score_jax.records import Problem
from score_jax.tasks import registry
from tests.tasks.grading import answer_cases
from tests.tasks.grading.answer_cases import GOLD, OTHER


def grade(task, gold, response):
    return registry.get(task).grade(Problem(id="1", prompt="?", answer=gold), response)


KINDS = [  # an answer in words is no formula
    (task, kind)
    for kind in answer_cases.KINDS
    for task in GOLD
    if (task, kind) != ("exact", "formulas")
]


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_an_answer_is_read_in_any_dress(task, kind):
    faults = []
    for form in answer_cases.KINDS[kind]:
        right, wrong = form.format(GOLD[task]), form.format(OTHER[task])
        found = [grade(task, GOLD[task], f"Work.\n{text}").verdict for text in (right, wrong)]
        if found != ["correct", "wrong"]:
            faults.append((form, found))
    assert faults == []


@pytest.mark.parametrize(
    ("task", "gold", "response", "verdict"), (*answer_cases.WIDE_DIGITS, *answer_cases.WORDS)
)
def test_words_and_characters(task, gold, response, verdict):
    assert grade(task, gold, response).verdict == verdict


@pytest.mark.parametrize("task", ["math", "numeric"])
@pytest.mark.parametrize(("response", "which"), answer_cases.REMARKS)
def test_a_remark_states_nothing_and_a_change_of_mind_does(task, response, which):
    verdicts = [grade(task, gold, response).verdict for gold in ("15", "16")]
    assert verdicts == (["correct", "wrong"] if which == 1 else ["wrong", "correct"])


@pytest.mark.parametrize("form", ["Final Answer: {}", "**Answer: {}**", "The answer is {}."])
@pytest.mark.parametrize(("answer", "letter"), answer_cases.LETTERS)
def test_a_letter_is_an_option_and_no_word(form, answer, letter):
    given = grade("choice", "C", form.format(answer))
    assert given.verdict == ("unparsable" if letter is None else "correct")
