"""Standard input and output of the commands, under whatever locale they are started."""

import io
import sys


def open_to_all_text() -> None:
    """Reads UTF-8 and prints any text: what the locale can't show comes out as an escape.

    Bytes on stdin that are not UTF-8 come as lone surrogates, for the reader to refuse.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def as_text(argument: str) -> str:
    """An argument of the command line, read as UTF-8 whatever the locale made of it."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
