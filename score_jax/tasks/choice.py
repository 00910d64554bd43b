"""Multiple-choice questions, as in law, medicine and exams; the prompt has lettered options."""

from score_jax.records import Problem, Task, Verdict
from score_jax.tasks.grading import letters

INSTRUCTION = (
    "There might be an error in the reasoning above. Please correct the error, if any, and rewrite "
    'the reasoning. End with "Final Answer: " and one letter.'
)


def prompt(problem: Problem) -> str:
    """The question, and the form of the answer."""
    return (
        f'{problem.prompt.strip()}\n\nThink step by step. End with "Final Answer: " and one letter.'
    )


def gold_response(problem: Problem) -> str:
    """A response that states the gold answer."""
    return f"Final Answer: ({problem.answer})"


EXAMPLE = Problem(id="choice/known", prompt="A. yes\nB. no", answer="B")
SELF_TEST_CASES: tuple[tuple[Problem, str, Verdict], ...] = (
    (EXAMPLE, "Final Answer: (B) no", "correct"),
    (EXAMPLE, "The answer is A.", "wrong"),
    (EXAMPLE, "Final Answer: A or B", "unparsable"),
)
TASK = Task(
    name="choice",
    prompt=prompt,
    instruction=INSTRUCTION,
    grade=letters.grade,
    gold_response=gold_response,
    self_test_cases=SELF_TEST_CASES,
)
