"""Reads text files of a model folder, with one-line errors for broken ones."""

import json
from pathlib import Path
from typing import Any

LFS_POINTER = b"version https://git-lfs"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def check_fetched(path: Path) -> None:
    """Checks that a file's content was downloaded.

    Raises:
      ValueError: the file is empty or a git-lfs pointer.
    """
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if not start:
        raise ValueError(f"{path} is empty; fetch it again")
    if start == LFS_POINTER:
        raise ValueError(
            f"{path} is a git-lfs pointer, not the file itself; run 'git lfs pull' in its folder"
        )


def read_text(path: Path) -> str:
    """Reads a file's text.

    Raises:
      ValueError: the file is empty, a git-lfs pointer, or not UTF-8 without byte-order mark.
    """
    check_fetched(path)
    content = path.read_bytes()
    if content.startswith(BYTE_ORDER_MARK):
        raise ValueError(f"{path} begins with a byte-order mark; save it as UTF-8 without one")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 at byte {error.start}; fetch it again or save it as UTF-8"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that contains an object.

    Raises:
      ValueError: the file is truncated or otherwise no JSON, or its value is no object.
    """
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(
            f"{path} is cut short or no JSON ({error.msg}, {where}); fetch it again"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply for JSON; fetch it again") from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ValueError(f"{path} holds a {kind}; a JSON object is needed, fetch it again")
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
