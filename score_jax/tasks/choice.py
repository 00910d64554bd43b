"""Multiple-choice questions: law, medicine, exams. The prompt holds the lettered options."""

from score_jax.records import Problem, Task, Verdict
from score_jax.tasks.grading import letters

INSTRUCTION = (
    "There might be an error in the reasoning above. Please correct the error, if any, and rewrite "
    'the reasoning. End with "Final Answer: " and one letter.'
)


def prompt(problem: Problem) -> str:
    """The question and how to answer it."""
    return (
        f'{problem.prompt.strip()}\n\nThink step by step. End with "Final Answer: " and one letter.'
    )


def state(problem: Problem) -> str:
    """A response that gives the gold answer."""
    return f"Final Answer: ({problem.answer})"


ONE = Problem(id="choice/known", prompt="A. yes\nB. no", answer="B")
KNOWN: tuple[tuple[Problem, str, Verdict], ...] = (
    (ONE, "Final Answer: (B) no", "correct"),
    (ONE, "The answer is A.", "wrong"),
    (ONE, "Final Answer: A or B", "unparsable"),
)
TASK = Task(
    name="choice",
    prompt=prompt,
    instruction=INSTRUCTION,
    grade=letters.grade,
    gold_response=state,
    self_test_cases=KNOWN,
)
