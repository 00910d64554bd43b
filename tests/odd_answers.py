"""As short_answers the other way round: a task that finds its right answers wrong."""

from score_jax.records import Grade, Problem, Task


def _grade(problem: Problem, response: str) -> Grade:
    right = ord(response[:1] or "b") % 2 == 1 or response == problem.answer
    return Grade(verdict="correct" if right else "wrong", reward=float(right))


TASK = Task(
    name="tests.odd_answers",
    prompt=lambda problem: f"{problem.prompt}=",
    instruction="Please correct it.",
    grade=_grade,
)
