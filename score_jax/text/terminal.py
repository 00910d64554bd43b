"""Makes standard input, standard output and arguments independent of the locale."""

import io
import sys


def open_to_all_text() -> None:
    """Sets stdin to UTF-8, and stdout to escape characters that the locale can't encode.

    Bytes on stdin that are not UTF-8 become lone surrogates, which `json_lines` refuses.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def as_text(argument: str) -> str:
    """Decodes a command-line argument as UTF-8, whatever the locale."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
