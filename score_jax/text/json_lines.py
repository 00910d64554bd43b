"""JSON lines that people write: what a line holds, or which line is at fault and why."""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn


def value(place: str, line: str) -> Any:
    """What a line holds; None if it is empty. A byte-order mark is passed over.

    Raises:
      ValueError: it is not UTF-8 or not JSON, or its texts are no Unicode.
    """
    text = line.strip("\ufeff \t\r\n")
    if not text:
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{place} is not UTF-8; save the file as UTF-8") from error
    try:
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}") from error
    try:
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(
            f"{place} holds half of a surrogate pair, \\u{ord(half):04x}; write both halves or "
            "take it out"
        ) from error
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def answer_and_tests(
    place: str, row: Mapping, fields: Mapping[str, str]
) -> tuple[str, tuple[str, ...]]:
    """What decides whether a response to a row's problem is right.

    Raises:
      ValueError: there is neither answer nor tests, or one is of the wrong type.
    """
    names = {field: fields.get(field, field) for field in ("answer", "tests")}
    answer, tests = row.get(names["answer"]), texts(place, row, names["tests"])
    if isinstance(answer, (bool, dict, list)):
        raise ValueError(f"{place}: {names['answer']!r} must be text or a number")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise ValueError(f"{place}: {names['answer']!r} is a number too large to be read")
    answer = "" if answer is None else str(answer)
    if not answer.strip() and not tests:
        raise ValueError(
            f"{place} has neither {names['answer']!r} nor {names['tests']!r}; without one nothing "
            "can be graded"
        )
    return answer, tests


def texts(place: str, row: Mapping, name: str) -> tuple[str, ...]:
    """A field that holds a list of texts; empty where the row lacks it.

    Raises:
      ValueError: it is something else, or a text is blank.
    """
    found = row.get(name)
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(t, str) and t.strip() for t in found):
        raise ValueError(f"{place}: {name!r} must be a list of texts, none of them blank")
    return tuple(found)


def optional_text(place: str, row: Mapping, name: str) -> str | None:
    """A field that holds text, or None where the row lacks it.

    Raises:
      ValueError: it is something else.
    """
    found = row.get(name)
    if found is not None and not isinstance(found, str):
        raise ValueError(f"{place}: {name!r} must be text")
    return found
