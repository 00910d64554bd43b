"""Answers that a task's grader finds equal are one vote."""

import numpy as np
import pytest

from score_jax.records import Problem
from score_jax.report.metrics import Attempts, measure
from score_jax.report.scaling import maj_at_k
from score_jax.stages.evaluate import with_one_spelling
from score_jax.tasks import registry
from score_jax.tasks.grading.agreement import one_spelling
from score_jax.tasks.grading.pool import Pool


@pytest.fixture(scope="module")
def pool():
    with Pool(1) as pool:
        yield pool


def spell(pool, name, *problems):
    answers = [[(a, v) for a, v in problem] for problem in problems]
    return one_spelling(lambda items: pool.grade(name, items), registry.get(name), answers)


def wrong(*answers):
    return [(answer, "wrong") for answer in answers]


@pytest.mark.parametrize(
    ("task", "answers", "spelled"),
    [
        ("math", [r"\frac{1}{2}", "0.5", "1", "1/2", "2/2"], [0, 0, 2, 0, 2]),
        ("math", ["x+1", "1+x", "x-1", "{1,2}", "1,2"], [0, 0, 2, 3, 4]),
        ("math", ["(1,2)", "1,2", "2,1"], [0, 1, 1]),
        ("math", ["50", r"50\%", "0.51"], [0, 0, 2]),
        ("numeric", ["1.5 million", "$1.5M", "1,500,000", "1.5", "1.5 kg"], [0, 0, 0, 3, 3]),
        ("words", ["13", "13.0", "31"], [0, 0, 2]),
        ("choice", ["A", "B", "A"], [0, 1, 0]),
        ("exact", ["blue", "Blue", "blue"], [0, 1, 0]),  # letter by letter
        ("equations", ["16", "016", "16"], [0, 1, 0]),  # it states no answers: compared as text
        ("code", ["x = 1", "x=1"], [0, 1]),
    ],
)
def test_equal_answers_get_the_first_ones_spelling(pool, task, answers, spelled):
    expected = [answers[index] for index in spelled]
    assert spell(pool, task, wrong(*answers)) == [expected]


def test_problems_verdicts_and_missing_answers_are_kept_apart(pool):
    first = [("1/2", "correct"), (None, "unparsable"), ("0.5", "correct"), ("", "unparsable")]
    second = [("0.5", "wrong"), ("abc", "unparsable"), ("1/2", "wrong"), ("0.5", "timeout")]
    assert spell(pool, "numeric", first, second, []) == [
        ["1/2", None, "1/2", ""],
        ["0.5", "abc", "0.5", "0.5"],
        [],
    ]


def test_each_answer_is_compared_with_one_of_every_group():
    asked = []

    def grade(items):
        asked.append(len(items))
        with Pool(1) as pool:
            return pool.grade("numeric", items)

    answers = wrong("1", "1.0", "2", "2.0", "3", "1.00", "1", "2")
    found = one_spelling(grade, registry.get("numeric"), [answers, answers[:1]])
    assert found == [["1", "1", "2", "2", "3", "1", "1", "2"], ["1"]]
    assert asked == [5, 2]  # 1 with 1.0, 2, 2.0, 3, 1.00; then 2 with 2.0, 3


def attempts_of(answers, gold):
    """Attempts of one problem: answers per sample and turn."""
    grade = registry.get("math").grade
    problem = Problem(id="1", prompt="", answer=gold)
    verdicts = [
        [[grade(problem, f"The answer is ${a}$.").verdict for a in sample] for sample in answers]
    ]
    correct = np.array(verdicts) == "correct"
    ones = np.ones(correct.shape)
    return Attempts(
        correct=correct,
        rewards=correct,
        texts=np.full(correct.shape, "", object),
        extracted=[answers],
        lengths=ones,
        truncated=~ones.astype(bool),
        verdicts=verdicts,
    )


def test_a_half_and_a_decimal_are_one_vote(pool):
    """As texts 0.7 has most votes of the first attempts, two; as answers 1/2 has three."""
    answers = [
        ["0.7", "1"],
        ["1/2", "1"],
        ["0.7", r"\frac12"],
        ["0.5", "0.5"],
        ["2/4", "1/2"],
        ["3", "1"],
    ]
    attempts = attempts_of(answers, "1/2")

    def vote(attempts):
        return maj_at_k(attempts.extracted[..., :1], attempts.correct[..., :1], 6).tolist()

    assert vote(attempts) == [0]  # as texts, 0.7 has most votes
    spelled = with_one_spelling(attempts, [registry.get("math")], pool)
    assert spelled.extracted[0, :, 0].tolist() == ["0.7", "1/2", "0.7", "1/2", "1/2", "3"]
    assert vote(spelled) == [1]
    changed = [attempts, spelled]
    assert [measure(a, seed=0)["answer_changed"].value for a in changed] == [5 / 6, 4 / 6]


def test_each_problems_own_task_decides_what_is_equal(pool):
    """1/2 and 0.5 are one number and two texts."""
    answers = [[["1/2"], ["0.5"]], [["1/2"], ["0.5"]]]
    one = attempts_of([["1/2"], ["0.5"]], "3")
    both = {
        name: np.concatenate([getattr(one, name)] * 2)
        for name in ("correct", "rewards", "texts", "lengths", "truncated", "verdicts")
    }
    attempts = Attempts(**both, extracted=answers)
    tasks = [registry.get("exact"), registry.get("math")]
    spelled = with_one_spelling(attempts, tasks, pool).extracted
    assert spelled[..., 0].tolist() == [["1/2", "0.5"], ["1/2", "1/2"]]
