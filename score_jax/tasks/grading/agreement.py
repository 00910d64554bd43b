"""Gives equal answers of one problem one spelling, so that they are one vote: 1/2 and 0.5.

Equal is what the task's own grader says: the first answer is taken for the gold one, and a
response that states the other is graded, in the pool's processes and under its deadlines,
since symbolic comparison may not end. Equal texts are one answer from the start, and of the
rest each is compared with one answer of every group only.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from score_jax.records import Grade, Problem, Task, Verdict

MOST_AT_ONCE = 2000  # comparisons of one batch of the pool, which has a deadline
COMPARED: tuple[Verdict, ...] = ("correct", "wrong")  # what was not judged is compared as text

Answers = Sequence[tuple[str | None, Verdict]]


GradeAll = Callable[[Sequence[tuple[Problem, str]]], list[Grade]]


def one_spelling(
    grade: GradeAll, task: Task, problems: Sequence[Answers]
) -> list[list[str | None]]:
    """Writes each answer as the first one of its problem that equals it.

    Args:
      grade: grades responses of that task, as a pool does.
      task: of the answers. One that cannot state a gold answer (`state` is None), as where
        tests decide, has its answers compared as text.
      problems: per problem, its answers with their verdicts. A right and a wrong answer are
        not equal, so they are not compared.
    """
    spelling: list[dict[str, str]] = [{} for _ in problems]
    if task.gold_response is not None:
        waiting = _groups(problems)
        while waiting:
            waiting = _next_round(grade, task, waiting, spelling)
    return [
        [answer and found.get(answer, answer) for answer, _ in answers]
        for answers, found in zip(problems, spelling, strict=True)
    ]


def _groups(problems: Sequence[Answers]) -> list[tuple[int, list[str]]]:
    """The distinct texts of each problem and verdict that are yet to be compared."""
    groups = []
    for place, answers in enumerate(problems):
        for verdict in COMPARED:
            texts = list(dict.fromkeys(a for a, v in answers if a and v == verdict))
            if len(texts) > 1:
                groups.append((place, texts))
    return groups


def _next_round(
    grade: GradeAll,
    task: Task,
    waiting: Sequence[tuple[int, list[str]]],
    spelling: list[dict[str, str]],
) -> list[tuple[int, list[str]]]:
    """Compares the first text of every group with the others; returns what equals no first."""
    pairs = [(place, first, other) for place, (first, *others) in waiting for other in others]
    equal = _equal(grade, task, [pair[1:] for pair in pairs])
    left: dict[tuple[int, str], list[str]] = {}
    for (place, first, other), same in zip(pairs, equal, strict=True):
        if same:
            spelling[place][other] = first
        else:
            left.setdefault((place, first), []).append(other)
    return [(place, texts) for (place, _), texts in left.items() if len(texts) > 1]


def _equal(grade: GradeAll, task: Task, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    assert task.gold_response is not None, "without it nothing can be compared"
    items = []
    for gold, given in pairs:
        problem = Problem(id="vote", prompt="", answer=gold)
        items.append((problem, task.gold_response(replace(problem, answer=given))))
    grades: list[Grade] = []
    for start in range(0, len(items), MOST_AT_ONCE):
        grades += grade(items[start : start + MOST_AT_ONCE])
    return [given.verdict == "correct" for given in grades]
