"""As `code`, but the reward is the share of passed tests; `correct` still needs all of them."""

from dataclasses import replace

from score_jax.records import Grade, Problem
from score_jax.tasks import code
from score_jax.tasks.grading import programs


def grade(problem: Problem, response: str) -> Grade:
    """Reward is the share of passed tests, 0..1."""
    return programs.grade(problem, programs.extract(problem, response), share=True)


TASK = replace(code.TASK, name="code_share", grade=grade)
