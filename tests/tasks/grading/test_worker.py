"""What a grader says of responses that reached their length limit."""

import pytest

from score_jax.records import Grade, Problem
from score_jax.tasks import registry
from score_jax.tasks.grading.pool import Pool
from score_jax.tasks.grading.worker import grade_cut

DOUBLE = "def double(x):\n    return 2 * x\n"
PROBLEMS = {
    "equations": Problem(id="1", prompt="7x+16=128", answer="x=17"),
    "math": Problem(id="1", prompt="?", answer="72"),
    "numeric": Problem(id="1", prompt="?", answer="1.5"),
    "words": Problem(id="1", prompt="?", answer="13"),
    "choice": Problem(id="1", prompt="?", answer="C"),
    "exact": Problem(id="1", prompt="?", answer="blue"),
    "code": Problem(id="1", prompt="?", tests=("assert double(4) == 8",)),
    "humaneval": Problem(
        id="1",
        prompt='def double(x):\n    """Return 2 x."""\n',
        tests=("def check(candidate):\n    assert candidate(2) == 4\n\ncheck(double)\n",),
    ),
}
CLOSED = [
    ("equations", "x=17:7*1"),
    ("equations", "x=17 "),
    ("math", r"We get $\boxed{72}"),
    ("math", r"We get $\boxed{72}$. The answer is corr"),
    ("math", "Final Answer: The final answer is $72$. I hope it is corr"),
    ("math", "Final Answer: 72\n"),
    ("math", "The answer is 72. Let us ch"),
    ("numeric", "Final Answer: 1.5\n\nTo check"),
    ("words", "8 + 5 = 13. Final Answer: 13\n"),
    ("choice", "Final Answer: (C) Car"),
    ("choice", "The answer is C. It"),
    ("exact", "Final Answer: blue\nBecause"),
    ("code", f"```python\n{DOUBLE}```"),
    ("code", f"```python\n{DOUBLE}```\nIt doub"),
    ("code", f"{DOUBLE}[DONE]"),
    ("code", f"{DOUBLE}[DONE]\n\nYou are an exp"),
    ("humaneval", f"```python\n{DOUBLE}```\n"),
]
OPEN = [
    ("equations", "x=17"),
    ("equations", "x=17:7*17,x="),
    ("math", r"so $\boxed{72"),
    ("math", r"$\boxed{71}$. No, wait: $\boxed{72"),
    ("math", "The answer is 72"),
    ("math", "The answer is 72."),
    ("math", "Final Answer: The final answer is $72"),
    ("math", r"$\boxed{72}$. I made a mistake. Final Answer: "),
    ("numeric", "Final Answer: 1.5"),
    ("numeric", "Final Answer: $1.5"),
    ("words", "Final Answer: 13"),
    ("choice", "Final Answer: C"),
    ("exact", "Final Answer: blue"),
    ("code", DOUBLE),
    ("code", f"```python\n{DOUBLE}"),
    ("code", f"```python\n{DOUBLE}```\nBetter:\n```python\ndef double(x):\n    return"),
    ("code", "def double(x):\n    return 2 * x"),
    ("code", "def double(x):\n    return 2 * x\n    print("),
    ("code", "def double(x):\n    if x:\n        return 2 * x\n    return x if x els"),
    ("code", f"```python\n{DOUBLE}\n# It doub"),
    ("humaneval", "    return 2 * x"),
]


@pytest.mark.parametrize(("task", "response"), CLOSED)
def test_an_answer_closed_before_the_cut_counts(task, response):
    grade = registry.get(task).grade
    assert grade_cut(grade, PROBLEMS[task], response) == grade(PROBLEMS[task], response)
    assert grade(PROBLEMS[task], response).verdict == "correct"


@pytest.mark.parametrize(("task", "response"), OPEN)
def test_a_turn_cut_inside_its_answer_is_not_graded_on_the_stump(task, response):
    given = grade_cut(registry.get(task).grade, PROBLEMS[task], response)
    assert (given.verdict, given.reward, given.extracted) == ("unparsable", 0.0, None)


def test_a_closed_answer_may_be_wrong_and_a_missing_one_stays_missing():
    equations = registry.get("equations").grade
    assert grade_cut(equations, PROBLEMS["equations"], "x=1:7*1").verdict == "wrong"
    missing = grade_cut(equations, PROBLEMS["equations"], "7*17")
    assert missing == equations(PROBLEMS["equations"], "7*17")


def test_a_grader_that_extracts_nothing_is_held_to_its_verdict():
    def digit(place):
        def grade(problem, response):
            right = response[place] == "7"
            return Grade(verdict="correct" if right else "wrong", reward=float(right))

        return grade

    last, first = digit(-1), digit(0)
    assert grade_cut(last, PROBLEMS["math"], "17").verdict == "unparsable"
    assert [grade_cut(first, PROBLEMS["math"], text).reward for text in ("71", "17")] == [1, 0]


def test_the_pool_grades_a_cut_and_a_whole_response_apart():
    item = (PROBLEMS["equations"], "x=17")
    with Pool(1) as pool:
        for _ in range(2):  # the second time from its cache
            grades = pool.grade("equations", [item, item, item], [True, False, True])
            assert [grade.verdict for grade in grades] == ["unparsable", "correct", "unparsable"]
        with pytest.raises(ValueError, match="cut has 1 values for 2 items"):
            pool.submit("equations", [item, item], [True])
