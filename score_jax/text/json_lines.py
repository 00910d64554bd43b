"""Parses lines of JSONL files; errors name the file and line.

`location` is "file:line" or the like, for messages.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn


def value(location: str, line: str) -> Any:
    """Parses one line; None if it is empty. A byte-order mark is ignored.

    Raises:
      ValueError: the line is not UTF-8, not JSON, or holds half of a surrogate pair.
    """
    text = line.strip("\ufeff \t\r\n")
    if not text:
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{location} is not UTF-8; save the file as UTF-8") from error
    try:
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{location} is not JSON: {error}") from error
    try:
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(
            f"{location} holds half of a surrogate pair, \\u{ord(half):04x}; write both halves or "
            "remove it"
        ) from error
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def answer_and_tests(
    location: str, row: Mapping, fields: Mapping[str, str]
) -> tuple[str, tuple[str, ...]]:
    """The gold answer and the tests of a row.

    Args:
      fields: the row's names of answer and tests, where they differ.

    Raises:
      ValueError: the row has neither, or one has a wrong type.
    """
    names = {field: fields.get(field, field) for field in ("answer", "tests")}
    answer, tests = row.get(names["answer"]), texts(location, row, names["tests"])
    if isinstance(answer, (bool, dict, list)):
        raise ValueError(f"{location}: {names['answer']!r} must be text or a number")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise ValueError(f"{location}: {names['answer']!r} is too large a number")
    answer = "" if answer is None else str(answer)
    if not answer.strip() and not tests:
        raise ValueError(
            f"{location} has neither {names['answer']!r} nor {names['tests']!r}; add one, since "
            "the grader needs it"
        )
    return answer, tests


def texts(location: str, row: Mapping, name: str) -> tuple[str, ...]:
    """Reads a field with a list of texts; empty where the row lacks it.

    Raises:
      ValueError: the value is no list of texts, or a text is blank.
    """
    found = row.get(name)
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(t, str) and t.strip() for t in found):
        raise ValueError(f"{location}: {name!r} must be a list of texts, none of them blank")
    return tuple(found)


def optional_text(location: str, row: Mapping, name: str) -> str | None:
    """Reads a text field; None where the row lacks it.

    Raises:
      ValueError: the value is not text.
    """
    found = row.get(name)
    if found is not None and not isinstance(found, str):
        raise ValueError(f"{location}: {name!r} must be text")
    return found
