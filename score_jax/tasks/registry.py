"""Looks up tasks by name: a module of this folder, or any module by its dotted name.

A task is a module with a module-level `TASK`. Only the requested module is imported.
"""

import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path

from score_jax.records import Problem, Task

_HERE = Path(__file__).parent
_NO_TASKS = ("registry", "__main__")


def names() -> list[str]:
    """Lists the built-in tasks."""
    found = pkgutil.iter_modules([str(_HERE)])  # folders hold graders, not tasks
    return sorted(one.name for one in found if not one.ispkg and one.name not in _NO_TASKS)


def get(name: str) -> Task:
    """Returns a task.

    Args:
      name: one of `names()`, or the dotted name of a module of yours.

    Raises:
      ValueError: there is no such task.
    """
    if not name or ("." not in name and name not in names()):
        raise ValueError(
            f"task is {name!r}; choose one of {', '.join(names())}, or name a module of yours "
            "with a dot (package.module) that has a module-level TASK"
        )
    if "." not in name:
        return importlib.import_module(f"score_jax.tasks.{name}").TASK
    try:
        task = importlib.import_module(name).TASK
    except ModuleNotFoundError as error:
        raise ValueError(f"task is {name!r}; {error.name} cannot be imported") from error
    except AttributeError as error:
        raise ValueError(f"task is {name!r}; that module has no TASK") from error
    if not isinstance(task, Task) or task.name != name:
        raise ValueError(f"task is {name!r}; its TASK must be a Task of that same name")
    return task


def of_problems(
    problems: Iterable[Problem], name: str, field: str = "config.task"
) -> dict[str, Task]:
    """The tasks that ask and grade a set of problems, by the name that a problem gives.

    Args:
      name: task of the problems that name none.
      field: the config field or flag that set the name, for messages.

    Raises:
      ValueError: there is no such task, or no problem is of the task `name`.
    """
    default = get(name)
    first: dict[str, str] = {}
    for problem in problems:
        first.setdefault(problem.task, problem.label)
    if first and not first.keys() & {"", name}:
        others = ", ".join(f"{other!r} (the first is {first[other]!r})" for other in sorted(first))
        raise ValueError(
            f"{field} is {name!r}, but the data contain only problems of task {others}; set it to "
            "one of these"
        )
    return {other: get(other) if other else default for other in sorted(first)} or {"": default}
