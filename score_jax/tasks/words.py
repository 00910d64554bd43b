"""Word problems for very small models, which learn the form of the answer from examples.

The chat format `smollm2_words` starts with worked dialogues; the prompt does not describe
the form. Numbers are compared as in `numeric`.
"""

from dataclasses import replace

from score_jax.records import Problem, Verdict
from score_jax.tasks import numeric
from score_jax.text.examples import INSTRUCTION


def prompt(problem: Problem) -> str:
    """The problem statement."""
    return problem.prompt.strip()


SUM = Problem(id="words/known", prompt="How many?", answer="13")
SELF_TEST_CASES: tuple[tuple[Problem, str, Verdict], ...] = (
    (SUM, "8 + 5 = 13. Final Answer: 13", "correct"),
    (SUM, "8 + 5 = 13. Final Answer: 3", "wrong"),
    (SUM, "8 + 5 = 13", "unparsable"),
)
TASK = replace(
    numeric.TASK,
    name="words",
    prompt=prompt,
    instruction=INSTRUCTION,
    self_test_cases=SELF_TEST_CASES,
)
