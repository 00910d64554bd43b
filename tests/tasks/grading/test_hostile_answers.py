import os
import time

import psutil
import pytest

from score_jax.records import Problem
from score_jax.tasks.grading.pool import Pool, count_verdicts
from tests.tasks.grading.hostile_answers import MARK, responses


def unwrapped(response):
    """Whether the answer is 42 in brackets, a matter of taste rather than of safety."""
    text = response.replace("Final Answer: $", "").rstrip("$")
    for part in (r"\text", r"\boxed", r"\left", r"\right", r"\frac", "{1}", *"(){}[]|\\!$ "):
        text = text.replace(part, "")
    return text == "42"


def test_there_are_two_hundred_hostile_answers():
    assert len(set(responses())) >= 200


@pytest.mark.parametrize("task", ["math", "numeric", "exact", "choice"])
def test_hostile_answers_neither_score_nor_hang_nor_run(task):
    problem = Problem(id="1", prompt="?", answer="B" if task == "choice" else "42")
    items = [(problem, response) for response in responses()]
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with Pool(2, deadline_seconds=3, batch_deadline_seconds=60, cache_size=0) as pool:
        pool.grade(task, items[:1])
        start = time.monotonic()
        grades = pool.grade(task, items)
        seconds = time.monotonic() - start
        right = f"Final Answer: {problem.answer}"
        assert pool.grade(task, [(problem, right)])[0].verdict == "correct"
    scored = [
        response[:120]
        for (_, response), grade in zip(items, grades, strict=True)
        if grade.reward > 0 and not unwrapped(response)
    ]
    assert scored == []
    assert not os.path.exists(MARK)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    print(task, f"{seconds:.1f} s", count_verdicts(grades))
