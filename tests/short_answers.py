"""A task that a random policy gets right about half of the time: even length."""

from score_jax.records import Grade, Problem, Task


def _grade(problem: Problem, response: str) -> Grade:
    right = len(response) % 2 == 0 or response == problem.answer
    # Nothing is extracted, so that a response cut at its limit is graded like any other.
    return Grade(verdict="correct" if right else "wrong", reward=float(right))


TASK = Task(
    name="tests.short_answers",
    prompt=lambda problem: problem.prompt,
    instruction="There might be an error. Please correct it.",
    grade=_grade,
)
