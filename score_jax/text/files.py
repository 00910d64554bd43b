"""Text files of a model folder, or one line that says what is wrong with them."""

import json
from pathlib import Path
from typing import Any

LFS_POINTER = b"version https://git-lfs"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def check_fetched(path: Path) -> None:
    """Checks that a file holds what its name says, and not nothing or a note about it.

    Raises:
      ValueError: the file is empty, or git-lfs left its pointer in place of the contents.
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
    """A file's text.

    Raises:
      ValueError: it is empty, a git-lfs pointer, or not plain UTF-8.
    """
    check_fetched(path)
    content = path.read_bytes()
    if content.startswith(BYTE_ORDER_MARK):
        raise ValueError(f"{path} begins with a byte-order mark; save it as UTF-8 without one")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no UTF-8 text from byte {error.start} on; fetch it again or save it so"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
      ValueError: the file is cut short or otherwise no JSON, or holds something else.
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
