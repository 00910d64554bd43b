"""A task that a random policy gets right about half of the time: by its first character."""

from score_jax.records import Grade, Problem, Task


def _grade(problem: Problem, response: str) -> Grade:
    # What stands first is closed wherever the rest is cut, and nothing else is extracted: a
    # random policy seldom stops by itself, and what it is cut in must still earn something.
    right = ord(response[:1] or "a") % 2 == 0 or response == problem.answer
    return Grade(verdict="correct" if right else "wrong", reward=float(right))


TASK = Task(
    name="tests.short_answers",
    prompt=lambda problem: problem.prompt,
    instruction="There might be an error. Please correct it.",
    grade=_grade,
)
