"""First attempts that come with problems: another model's, or drawn earlier.

A JSONL file holds one attempt a line: the `id` of its problem, and the attempt as text
(`attempt`) or as token ids (`tokens`). A folder of rollouts (data.store) holds those that
`--mode=collect` has drawn. A problem may have several attempts: each is a problem of its
own then, with the ids "p", "p#2", "p#3" in the order of the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from score_jax.data import jsonl, store
from score_jax.records import Problem

FIELD = "data.first_attempts"
Attempt = str | tuple[int, ...]  # a text, or token ids


def read(path: str, problems: Sequence[Problem]) -> dict[str, list[Attempt]]:
    """Reads the attempts at each problem, by the problem's id.

    Args:
      path: of the file, or of the folder.
      problems: of the data set, which the file's ids must be of; rollouts of others are left out.

    Raises:
      ValueError: a line is invalid, or an id is of no problem.
    """
    known = {problem.id for problem in problems}
    found: dict[str, list[Attempt]] = {}
    if Path(path).is_dir():
        for dialogue in store.read(path):
            attempt = tuple(dialogue.tokens[dialogue.turn == 1].tolist())
            if dialogue.problem in known and attempt:
                found.setdefault(dialogue.problem, []).append(attempt)
        return found
    for location, row in jsonl.rows(path, field=FIELD):
        identifier = row.get("id")
        if identifier is None or isinstance(identifier, (bool, dict, list)):
            raise ValueError(f"{location}: 'id' must be text or a number")
        if str(identifier) not in known:
            raise ValueError(
                f"{location}: {FIELD} has an attempt at {identifier!r}, and no problem of the data "
                "has that id; remove the line, or name the file that belongs to these problems"
            )
        found.setdefault(str(identifier), []).append(of_row(location, row))
    return found


def of_row(location: str, row: Mapping) -> Attempt:
    """The attempt of one line.

    Raises:
      ValueError: it has none or two, or of a wrong type.
    """
    text, tokens = row.get("attempt"), row.get("tokens")
    if (text is None) == (tokens is None):
        raise ValueError(f"{location} needs either 'attempt', a text, or 'tokens', a list of ids")
    if tokens is None:
        if not isinstance(text, str):
            raise ValueError(f"{location}: 'attempt' must be text")
        return text
    if not isinstance(tokens, list) or not all(type(t) is int and t >= 0 for t in tokens):
        raise ValueError(f"{location}: 'tokens' must be a list of token ids")
    return tuple(tokens)


def attach(
    problems: Sequence[Problem], found: Mapping[str, Sequence[Attempt]], path: str
) -> list[Problem]:
    """One problem for each attempt, in the order of the problems; those without are left out.

    Args:
      found: of `read`.
      path: for messages.

    Raises:
      ValueError: no problem has an attempt, or two would have the same id.
    """
    given = list(_each(problems, found))
    if not given:
        raise ValueError(f"{FIELD} is {path!r}; it has an attempt at none of the problems")
    seen: set[str] = set()
    for problem in given:
        if problem.id in seen:
            raise ValueError(
                f"{FIELD} is {path!r}; with it two problems have the id {problem.id!r}: rename one"
            )
        seen.add(problem.id)
    return given


def _each(problems: Sequence[Problem], found: Mapping[str, Sequence[Attempt]]) -> Iterator[Problem]:
    for problem in problems:
        for number, attempt in enumerate(found.get(problem.id, ()), 1):
            suffix = f"#{number}" if number > 1 else ""
            yield replace(problem, id=problem.id + suffix, given=(attempt,))
