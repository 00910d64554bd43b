"""Questions whose answer is a number: finance, measurements, word problems.

An answer is correct within 0.01% of the gold value, or within the tolerance in the gold
answer ("12.5 +- 0.1", "12.5 +- 2%"). For another default, copy this module.
"""

from score_jax.records import Problem, Task, Verdict
from score_jax.tasks.grading import quantities

INSTRUCTION = (
    "There might be an error in the solution above. Please correct the error, if any, and rewrite "
    'the solution. End with "Final Answer: " and the number.'
)


def prompt(problem: Problem) -> str:
    """The question, and the form of the answer."""
    return (
        f"{problem.prompt.strip()}\n\nThink step by step. "
        'End with "Final Answer: " and the number, with its unit if it has one.'
    )


def gold_response(problem: Problem) -> str:
    """A response that states the gold answer, without its tolerance."""
    return f"Final Answer: {quantities.without_tolerance(problem.answer)}"


LOSS = Problem(id="numeric/known", prompt="Net income?", answer="-$1.5 million")
SELF_TEST_CASES: tuple[tuple[Problem, str, Verdict], ...] = (
    (LOSS, "Final Answer: $(1,500,000)", "correct"),
    (LOSS, "Final Answer: -1.6 million", "wrong"),
    (LOSS, "Final Answer: a loss", "unparsable"),
)
TASK = Task(
    name="numeric",
    prompt=prompt,
    instruction=INSTRUCTION,
    grade=quantities.grade,
    gold_response=gold_response,
    self_test_cases=SELF_TEST_CASES,
)
