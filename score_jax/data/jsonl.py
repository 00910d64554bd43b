"""Reads problems from JSONL files; errors name the file and line."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from score_jax.data import options
from score_jax.records import Problem
from score_jax.text.json_lines import answer_and_tests, optional_text, texts, value

FIELDS = (
    "id", "prompt", "answer", "tests", "shown", "task", "first_attempt", "options",
    "worked",
)  # fmt: skip


def rows(path: str | Path, *, field: str = "data.path") -> Iterator[tuple[str, dict]]:
    """Yields each line's location ("file:line") and object; empty lines are skipped.

    Args:
      field: the config field that names the file, for messages.

    Raises:
      ValueError: the file is absent, or a line is not a JSON object.
    """
    try:
        # Bytes that are not UTF-8 become lone surrogates, which `value` refuses.
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                location = f"{path}:{number}"
                row = value(location, line)
                if row is None:
                    continue
                if not isinstance(row, dict):
                    raise ValueError(
                        f"{location} is a {type(row).__name__}; write one JSON object per line"
                    )
                yield location, row
    except OSError as error:
        raise ValueError(f"{field} is {str(path)!r}; {error.strerror}") from error


def problem(location: str, row: Mapping, *, fields: Mapping[str, str], task: str) -> Problem:
    """Converts one row to a problem.

    Args:
      location: "file:line", for messages; also the id of a row without one.
      row: the parsed line.
      fields: the row's field names where they differ: {"prompt": "question", ...}.
      task: of rows without a task.

    Raises:
      ValueError: a field is missing or has a wrong type.
    """
    unknown = set(fields) - set(FIELDS)
    if unknown:
        raise ValueError(f"data.fields names {sorted(unknown)}; choose of {', '.join(FIELDS)}")
    name = {field: fields.get(field, field) for field in FIELDS}
    name["options"] = fields.get("options", "")  # unless asked for, a prompt has them already
    prompt, identifier = row.get(name["prompt"]), row.get(name["id"])
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(
            f"{location} has no text in its field {name['prompt']!r}; it has "
            f"{', '.join(sorted(row))}; name the right one with data.fields.prompt"
        )
    if isinstance(identifier, (bool, dict, list)):
        raise ValueError(f"{location}: {name['id']!r} must be text or a number")
    if row.get(name["first_attempt"]) is not None:
        raise ValueError(
            f"{location} has a first attempt in {name['first_attempt']!r}, where none is read; put "
            "it into a file of its own (id, attempt), and name that in data.first_attempts"
        )
    row, prompt = options.lettered(location, row, name, prompt)
    answer, tests = answer_and_tests(location, row, fields)
    shown = texts(location, row, name["shown"])
    if not set(shown) <= set(tests):
        raise ValueError(f"{location}: {name['shown']!r} must be some of {name['tests']!r}")
    return Problem(
        id=str(location if identifier is None else identifier),
        prompt=prompt,
        answer=answer,
        worked=optional_text(location, row, name["worked"]) or "",
        tests=tests,
        shown=shown,
        task=optional_text(location, row, name["task"]) or task,
        location=location,
    )


def problems(
    path: str | Path, *, fields: Mapping[str, str] | None = None, task: str = ""
) -> list[Problem]:
    """Reads a data set.

    Args:
      path: a JSONL file.
      fields: the file's field names where they differ from those of `Problem`.
      task: of rows without a task.

    Raises:
      ValueError: a line is invalid, an id occurs twice, or the file has no problem.
    """
    first_location: dict[str, str] = {}
    found = []
    for location, row in rows(path):
        item = problem(location, row, fields=fields or {}, task=task)
        if item.id in first_location:
            raise ValueError(
                f"{location} has the id {item.id!r}, as {first_location[item.id]}; make ids unique"
            )
        first_location[item.id] = location
        found.append(item)
    if not found:
        raise ValueError(f"{path} holds no problems")
    return found


def column(path: str | Path, name: str, *, field: str = "data.path") -> dict[str, object]:
    """Reads one field, such as pass rates, by problem id.

    Args:
      field: the config field that names the file, for messages.

    Raises:
      ValueError: a line has no id or no such field, or an id occurs twice.
    """
    found: dict[str, object] = {}
    for location, row in rows(path, field=field):
        if "id" not in row or name not in row:
            raise ValueError(f"{location} needs the fields 'id' and {name!r}")
        if str(row["id"]) in found:
            raise ValueError(f"{location} has the id {row['id']!r} for the second time")
        found[str(row["id"])] = row[name]
    return found
