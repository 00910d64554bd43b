"""Maps equal answers of a problem to one spelling, so that majority voting counts them together.

The task's grader decides whether answers are equal, such as 1/2 and 0.5: one answer is
taken as the gold answer, and a response that states the other is graded. This is done in
the pool's processes and under its deadlines, as symbolic comparison may not terminate.
Identical texts are merged first. In each round the first text of every group is compared
with the others of its group.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from score_jax.records import Grade, Problem, Task, Verdict

MOST_AT_ONCE = 2000  # comparisons per batch of the pool, as a batch has a deadline
COMPARED: tuple[Verdict, ...] = ("correct", "wrong")  # others are compared as text

Answers = Sequence[tuple[str | None, Verdict]]
GradeAll = Callable[[Sequence[tuple[Problem, str]]], list[Grade]]


def one_spelling(
    grade: GradeAll, task: Task, problems: Sequence[Answers]
) -> list[list[str | None]]:
    """Replaces each answer by the first answer of its problem that equals it.

    Args:
      grade: grades responses of the task, such as `Pool.grade` does.
      task: of the answers. If its gold_response is None, as where tests decide, answers are
        compared as text.
      problems: per problem, its answers with their verdicts. A correct and a wrong answer are
        never equal, so they are not compared.
    """
    spelling: list[dict[str, str]] = [{} for _ in problems]
    if task.gold_response is not None:
        groups = _groups(problems)
        while groups:
            groups = _next_round(grade, task, groups, spelling)
    return [
        [answer and found.get(answer, answer) for answer, _ in answers]
        for answers, found in zip(problems, spelling, strict=True)
    ]


def _groups(problems: Sequence[Answers]) -> list[tuple[int, list[str]]]:
    """The distinct texts of each problem and verdict, where there are several."""
    groups = []
    for index, answers in enumerate(problems):
        for verdict in COMPARED:
            texts = list(dict.fromkeys(a for a, v in answers if a and v == verdict))
            if len(texts) > 1:
                groups.append((index, texts))
    return groups


def _next_round(
    grade: GradeAll,
    task: Task,
    groups: Sequence[tuple[int, list[str]]],
    spelling: list[dict[str, str]],
) -> list[tuple[int, list[str]]]:
    """Compares the first text of every group with the others and writes matches to `spelling`.

    Returns:
      The groups of texts that did not match, where there are several.
    """
    pairs = [(index, first, other) for index, (first, *others) in groups for other in others]
    equal = _equal(grade, task, [pair[1:] for pair in pairs])
    unmatched: dict[tuple[int, str], list[str]] = {}
    for (index, first, other), same in zip(pairs, equal, strict=True):
        if same:
            spelling[index][other] = first
        else:
            unmatched.setdefault((index, first), []).append(other)
    return [(index, texts) for (index, _), texts in unmatched.items() if len(texts) > 1]


def _equal(grade: GradeAll, task: Task, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    assert task.gold_response is not None, f"task {task.name} has no gold_response"
    items = []
    for gold, other in pairs:
        problem = Problem(id="vote", prompt="", answer=gold)
        items.append((problem, task.gold_response(replace(problem, answer=other))))
    grades: list[Grade] = []
    for start in range(0, len(items), MOST_AT_ONCE):
        grades += grade(items[start : start + MOST_AT_ONCE])
    return [result.verdict == "correct" for result in grades]
