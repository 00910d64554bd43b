import subprocess
import sys

import pytest

from score_jax.records import Problem, Task
from score_jax.tasks import registry
from score_jax.tasks.grading.pool import Pool


def test_every_listed_task_is_one():
    assert set(registry.names()) >= {"math", "code", "humaneval", "choice", "numeric", "exact"}
    for name in registry.names():
        task = registry.get(name)
        assert isinstance(task, Task) and task.name == name
        assert isinstance(task.prompt(Problem(id="1", prompt="What?", tests=("assert 1",))), str)
        assert task.instruction.strip()


@pytest.mark.parametrize("name", ["", "maths", "no.such.module", "json.decoder"])
def test_an_unknown_task_is_refused_with_the_names(name):
    with pytest.raises(ValueError, match="task is"):
        registry.get(name)


def test_light_tasks_import_neither_sympy_nor_jax():
    code = (
        "import sys; from score_jax.tasks import registry\n"
        "for name in ('math', 'numeric', 'choice', 'exact', 'code'): registry.get(name)\n"
        "assert not {'jax', 'sympy', 'math_verify'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


GOLD = {
    "math": [r"\frac{1}{2}", r"\text{(B)}", "(1,2)", "1,2"],
    "numeric": ["5", "12.5 +- 2%", "$3 million"],
    "choice": ["A", "(D)"],
    "exact": ["abc", "two\nlines"],
    "words": ["13"],
    "receipts": ["628"],
    "subtraction": ["0", "628"],
}


def test_every_task_passes_its_self_test():
    with Pool(2) as pool:
        names = ("math", "numeric", "words", "choice", "exact", "receipts", "subtraction")
        names += ("code", "code_share", "humaneval")
        for name in names:
            answers = GOLD.get(name, [])
            problems = [Problem(id=answer, prompt="?", answer=answer) for answer in answers]
            pool.self_test(registry.get(name), problems)


def test_an_unparsable_gold_answer_stops_a_run():
    with Pool(1) as pool, pytest.raises(ValueError, match=r"'q7'.*'plenty'"):
        pool.self_test(registry.get("numeric"), [Problem(id="q7", prompt="?", answer="plenty")])


def of(*tasks):
    return [Problem(id=f"p{n}", prompt="?", answer="1", task=task) for n, task in enumerate(tasks)]


@pytest.mark.parametrize(
    ("tasks", "name", "told"),
    [
        (("exact",), "numeric", "of task 'exact' (the first is 'p0'); set"),
        (("exact", "exact"), "math", "of task 'exact' (the first is 'p0'); set"),
        (("humaneval",), "code", "of task 'humaneval' (the first is 'p0'); set"),
        (("code",), "code_share", "of task 'code' (the first is 'p0'); set"),
        (
            ("exact", "exact", "choice"),
            "math",
            "of task 'choice' (the first is 'p2'), 'exact' (the first is 'p0'); set",
        ),
        (("my.module",), "math", "of task 'my.module' (the first is 'p0'); set"),
    ],
)
def test_problems_none_of_which_is_of_the_task_are_refused_by_name(tasks, name, told):
    with pytest.raises(ValueError) as error:
        registry.of_problems(of(*tasks), name, "config.evaluation.task")
    assert told in str(error.value)
    assert str(error.value).startswith(f"config.evaluation.task is {name!r}, but the data contain")


@pytest.mark.parametrize(
    ("tasks", "found"),
    [
        ((), {"": "math"}),
        (("",), {"": "math"}),
        (("math", ""), {"": "math", "math": "math"}),
        (("math", "math"), {"math": "math"}),
        (("math", "", "exact", "exact"), {"": "math", "math": "math", "exact": "exact"}),
        (("", "choice"), {"": "math", "choice": "choice"}),
    ],
)
def test_each_problem_has_the_task_that_it_names_or_else_the_configs(tasks, found):
    expected = {own: registry.get(name) for own, name in found.items()}
    assert registry.of_problems(of(*tasks), "math") == expected


def test_a_problem_of_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task is 'maths'"):
        registry.of_problems(of("math", "maths"), "math")
