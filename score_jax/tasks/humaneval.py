"""Python functions from a signature and docstring (HumanEval), with the instruction of `code`.

Source: arXiv:2107.03374, section 2; arXiv:2409.12917, section 6.
"""

from score_jax.records import Grade, Problem, Task, Verdict
from score_jax.tasks.code import INSTRUCTION
from score_jax.tasks.grading import programs


def prompt(problem: Problem) -> str:
    """The signature and docstring, as published."""
    return problem.prompt


def grade(problem: Problem, response: str) -> Grade:
    """Accepts a complete function, or a body that continues the prompt."""
    return programs.grade(problem, programs.complete(problem.prompt, response))


EXAMPLE = Problem(
    id="humaneval/known",
    prompt='def double(x):\n    """Return 2 x."""\n',
    tests=("def check(candidate):\n    assert candidate(2) == 4\n\ncheck(double)\n",),
)
SELF_TEST_CASES: tuple[tuple[Problem, str, Verdict], ...] = (
    (EXAMPLE, "    return 2 * x", "correct"),
    (EXAMPLE, "```python\ndef double(x):\n    return x + x\n```", "correct"),
    (EXAMPLE, "    return x", "wrong"),
)
TASK = Task(
    name="humaneval",
    prompt=prompt,
    instruction=INSTRUCTION,
    grade=grade,
    self_test_cases=SELF_TEST_CASES,
)
