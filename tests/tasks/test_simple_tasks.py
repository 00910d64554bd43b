import pytest

from score_jax.records import Problem
from score_jax.tasks import choice, code, exact, humaneval, numeric, subtraction, words
from score_jax.text.examples import WORDS

TASKS = {"choice": choice, "exact": exact, "numeric": numeric, "words": words}


@pytest.mark.parametrize("module", [*TASKS.values(), subtraction])
def test_known_cases_hold(module):
    task = module.TASK
    assert {verdict for _, _, verdict in task.self_test_cases} == {"correct", "wrong", "unparsable"}
    for problem, response, verdict in task.self_test_cases:
        assert task.grade(problem, response).verdict == verdict


@pytest.mark.parametrize("name", list(TASKS))
def test_the_stated_gold_answer_is_correct(name):
    task = TASKS[name].TASK
    answer = {"choice": "C", "exact": "a\nb", "numeric": "1,250 +- 3", "words": "7"}[name]
    problem = Problem(id="1", prompt="?", answer=answer)
    assert task.gold_response is not None
    assert task.grade(problem, task.gold_response(problem)).verdict == "correct"


def test_code_prompts_hold_three_shots_and_the_asserts():
    tests = ("assert f(1) == 2", "assert f(2) == 4")
    text = code.TASK.ask(Problem(id="1", prompt="Double.", tests=tests, shown=tests[:1]))
    assert text.count("[BEGIN]") == 4 and text.count("[DONE]") == 3
    assert text.endswith(
        "Double. Your code should pass these tests:\n\nassert f(1) == 2\n[BEGIN]\n"
    )
    assert humaneval.prompt(Problem(id="1", prompt="def f():\n")) == "def f():\n"


def test_the_three_shots_are_right():
    """Each shot's program passes the asserts printed above it."""
    from score_jax.tasks.sandbox.sandbox import Limits, run

    for shot in code.SHOTS.split("[DONE]")[:3]:
        above, program = shot.split("[BEGIN]")
        tests = tuple(line for line in above.splitlines() if line.startswith("assert"))
        assert run(program, tests, Limits()).passed == (True, True, True)


def test_the_worked_word_problems_end_in_the_right_answers():
    """Each example's second answer is right, and one first answer is not."""
    right = []
    for start, answer in zip(range(0, len(WORDS), 4), ("8", "5", "14"), strict=True):
        problem = Problem(id="example", prompt=WORDS[start], answer=answer)
        first, second = (words.TASK.grade(problem, WORDS[start + i]) for i in (1, 3))
        assert second.verdict == "correct" and WORDS[start + 2] == words.TASK.instruction
        right.append(first.verdict)
    assert right == ["wrong", "correct", "correct"]
