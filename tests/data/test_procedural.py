"""The table of the embedded tasks: by name, and what is refused."""

import pytest

from score_jax.data import procedural, sources


@pytest.mark.parametrize(("task", "first"), [("", "x"), ("equations", "x"), ("receipts", "*")])
def test_the_task_decides_which_problems_are_made(task, first):
    found = sources.load(source="procedural", split="test", task=task, count=5)
    assert len(found) == 5
    assert all(first in problem.prompt and problem.task == task for problem in found)


@pytest.mark.parametrize("name", procedural.TASKS)
def test_no_training_problem_is_held_out(name):
    sets = [
        {problem.prompt for problem in procedural.TASKS[name].problems(name, split, 0, 0)}
        for split in ("train", "validation", "test")
    ]
    assert all(sets) and sum(map(len, sets)) == len(set.union(*sets))


@pytest.mark.parametrize("task", ["", "equations", "receipts"])
def test_a_split_that_there_is_not_is_named(task):
    message = "data.split is 'dev'; choose one of train, validation, test"
    with pytest.raises(ValueError, match=message):
        sources.load(source="procedural", split="dev", task=task)


def test_a_task_without_procedural_problems_is_named():
    message = "data.task is 'math'; procedural problems are of equations, receipts: choose one"
    with pytest.raises(ValueError, match=message):
        sources.load(source="procedural", task="math")
