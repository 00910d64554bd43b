"""The embedded tasks' problems, by the task's name, and what their base policies learn from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from score_jax.data import equations, receipts
from score_jax.records import Problem, WorkedDialogue


@dataclass(frozen=True, kw_only=True)
class Procedural:
    """How the problems of a task are made, and how a base policy for them."""

    problems: Callable[[str, str, int, int], Sequence[Problem]]  # of task, split, count, seed
    dialogues: Callable[..., list[WorkedDialogue]]  # of rng, count, careful=, right=
    sample_texts: Callable[[str], list[str]]  # of the instruction; for the tokenizer
    words: tuple[str, ...]  # that are one token each
    vocabulary: int


USUAL = equations.TASK  # of problems for which no task is named
TASKS = {
    module.TASK: Procedural(
        problems=module.problems,
        dialogues=module.dialogues,
        sample_texts=module.sample_texts,
        words=module.WORDS,
        vocabulary=module.VOCABULARY,
    )
    for module in (equations, receipts)
}


def find(task: str, field: str) -> Procedural:
    """A task's problems by its name.

    Args:
      field: that names the task, for the message.

    Raises:
      ValueError: the problems of this task are not procedural.
    """
    if task not in TASKS:
        names = ", ".join(TASKS)
        raise ValueError(f"{field} is {task!r}; procedural problems are of {names}: choose one")
    return TASKS[task]
