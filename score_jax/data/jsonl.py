"""Reads problems from JSON lines, and says which line is at fault when one is."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from score_jax.records import Problem

FIELDS = ("id", "prompt", "answer", "tests", "task", "first_attempt")


def rows(path: str | Path) -> Iterator[tuple[str, dict]]:
    """Yields each line's place ("file:line") and object; empty lines are passed over.

    Raises:
      ValueError: the file is absent, or a line is not a JSON object.
    """
    number = 0
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", _object(f"{path}:{number}", line)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number + 1} is not UTF-8: {error.reason}") from error
    except OSError as error:
        raise ValueError(f"data.path is {str(path)!r}; {error.strerror}") from error


def _object(place: str, line: str) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place} is a {type(row).__name__}; write one JSON object a line")
    return row


def problem(place: str, row: Mapping, *, fields: Mapping[str, str], task: str) -> Problem:
    """Makes a problem of one row.

    Args:
      place: "file:line", for messages; the id of a row that has none.
      row: the parsed line.
      fields: where the row's names differ: {"prompt": "question", ...}.
      task: of rows that name none.

    Raises:
      ValueError: a field is missing or of the wrong type.
    """
    unknown = set(fields) - set(FIELDS)
    if unknown:
        raise ValueError(f"data.fields names {sorted(unknown)}; choose of {', '.join(FIELDS)}")
    value = {field: row.get(fields.get(field, field)) for field in FIELDS}
    if not isinstance(value["prompt"], str) or not value["prompt"]:
        name = fields.get("prompt", "prompt")
        raise ValueError(
            f"{place} has no text in its field {name!r}; it has {', '.join(sorted(row))}; "
            "name the right one with data.fields.prompt"
        )
    tests = value["tests"] or ()
    if isinstance(tests, str) or not all(isinstance(test, str) for test in tests):
        raise ValueError(f"{place}: {fields.get('tests', 'tests')!r} must be a list of texts")
    answer = value["answer"]
    if isinstance(answer, (bool, dict, list)):
        raise ValueError(f"{place}: {fields.get('answer', 'answer')!r} must be text or a number")
    if answer is None and not tests:
        raise ValueError(
            f"{place} has neither {fields.get('answer', 'answer')!r} nor "
            f"{fields.get('tests', 'tests')!r}; without one nothing can be graded"
        )
    return Problem(
        id=str(place if value["id"] is None else value["id"]),
        prompt=value["prompt"],
        answer="" if answer is None else str(answer),
        tests=tuple(tests),
        task=value["task"] or task,
        first_attempt=value["first_attempt"],
    )


def problems(
    path: str | Path, *, fields: Mapping[str, str] | None = None, task: str = ""
) -> list[Problem]:
    """Reads a data set.

    Args:
      path: a JSONL file.
      fields: where the file's field names differ from those of `Problem`.
      task: of rows that name none.

    Raises:
      ValueError: a line is broken, an id stands twice, or there is no line; with its place.
    """
    first_place: dict[str, str] = {}
    found = []
    for place, row in rows(path):
        item = problem(place, row, fields=fields or {}, task=task)
        if item.id in first_place:
            raise ValueError(f"{place} has the id {item.id!r} of {first_place[item.id]}")
        first_place[item.id] = place
        found.append(item)
    if not found:
        raise ValueError(f"{path} holds no problems")
    return found


def column(path: str | Path, name: str) -> dict[str, object]:
    """Reads one field by problem id: pass rates, or first attempts of another model.

    Raises:
      ValueError: a line has no id or no such field, or an id stands twice.
    """
    found: dict[str, object] = {}
    for place, row in rows(path):
        if "id" not in row or name not in row:
            raise ValueError(f"{place} needs the fields 'id' and {name!r}")
        if str(row["id"]) in found:
            raise ValueError(f"{place} has the id {row['id']!r} for the second time")
        found[str(row["id"])] = row[name]
    return found
