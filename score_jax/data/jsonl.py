"""Reads problems from JSON lines, and says which line is at fault when one is."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from score_jax.records import Problem
from score_jax.text.json_lines import answer_and_tests, optional_text, texts, value

FIELDS = ("id", "prompt", "answer", "tests", "shown", "task", "first_attempt")


def rows(path: str | Path) -> Iterator[tuple[str, dict]]:
    """Yields each line's place ("file:line") and object; empty lines are passed over.

    Raises:
      ValueError: the file is absent, or a line is not a JSON object.
    """
    try:
        # Bytes that are not UTF-8 come as lone surrogates, which `value` refuses by line.
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                place = f"{path}:{number}"
                row = value(place, line)
                if row is None:
                    continue
                if not isinstance(row, dict):
                    raise ValueError(
                        f"{place} is a {type(row).__name__}; write one JSON object a line"
                    )
                yield place, row
    except OSError as error:
        raise ValueError(f"data.path is {str(path)!r}; {error.strerror}") from error


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
    name = {field: fields.get(field, field) for field in FIELDS}
    prompt, identifier = row.get(name["prompt"]), row.get(name["id"])
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(
            f"{place} has no text in its field {name['prompt']!r}; it has "
            f"{', '.join(sorted(row))}; name the right one with data.fields.prompt"
        )
    if isinstance(identifier, (bool, dict, list)):
        raise ValueError(f"{place}: {name['id']!r} must be text or a number")
    if row.get(name["first_attempt"]) is not None:
        raise ValueError(
            f"{place} gives a first attempt in {name['first_attempt']!r}; every attempt is sampled "
            "so far: take the field out"
        )
    answer, tests = answer_and_tests(place, row, fields)
    shown = texts(place, row, name["shown"])
    if not set(shown) <= set(tests):
        raise ValueError(f"{place}: {name['shown']!r} must be some of {name['tests']!r}")
    return Problem(
        id=str(place if identifier is None else identifier),
        prompt=prompt,
        answer=answer,
        tests=tests,
        shown=shown,
        task=optional_text(place, row, name["task"]) or task,
        place=place,
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
    """Reads one field by problem id, such as pass rates.

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
