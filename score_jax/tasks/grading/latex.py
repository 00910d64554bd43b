"""Normalises an answer's LaTeX and parses its outer structure.

The kind of an answer (list of solutions, set, tuple, interval, matrix) is determined here
from the text: symbolic libraries discard it, and then find (1,2) equal to {1,2}.
"""

import re
from dataclasses import dataclass
from typing import Literal

from score_jax.tasks.grading import characters, notation

MOST_SIGNS = 20  # signs of inequality or equality in one answer

Kind = Literal["scalar", "list", "set", "tuple", "interval", "matrix", "union", "chain"]

_REPLACED = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:displaystyle|textstyle|limits|mathop|big|Big|bigg|Bigg)(?![a-zA-Z])", ""),
        (r"\\(?:left|right)(?![a-zA-Z])\.?", ""),
        (r"\\(?:[dtc]frac)(?![a-zA-Z])", r"\\frac"),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\(?:[,;: ]|q?quad(?![a-zA-Z]))|~|\xa0", " "),
        (r"\{,\}", ","),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\(?:lbrack)(?![a-zA-Z])", "["),
        (r"\\(?:rbrack)(?![a-zA-Z])", "]"),
        (r"\\(?:leqslant|leqq|leq)(?![a-zA-Z])", r"\\le "),
        (r"\\(?:geqslant|geqq|geq)(?![a-zA-Z])", r"\\ge "),
        (r"\\neq(?![a-zA-Z])|\\not\s*=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:emptyset|varnothing)(?![a-zA-Z])", r"\\{\\}"),
        (r"\\var(?=(?:phi|epsilon|theta|rho|sigma)(?![a-zA-Z]))", r"\\"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"\\sqrt\s*(\d|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"\\(?:operatorname|mathbf|mathit|boldsymbol|mathbb)\s*\{([^{}]*)\}", r"\1"),
        (r"\\mathbb\s*([A-Z])", r"\1"),
        (r"\{\\rm\s+([^{}]*)\}", r"\\mathrm{\1}"),
        (r"\\(?:implies|therefore|because)(?![a-zA-Z])", " "),
    )
)
_TEXT = re.compile(r"\\(?:text|mbox|textbf|textit|mathrm|textrm|textnormal)\s*\{([^{}]*)\}")
_SPECIAL = re.compile(r"[\\~\xa0]|\{,\}")  # every pattern of _REPLACED matches one of these
_SPACES = re.compile(r"\s+")
_SIGN = re.compile(r"[<>=]|\\(?:le|ge|ne)(?![a-zA-Z])")
_MATRIX = re.compile(
    r"\\begin\{([pbBv]?matrix|array|smallmatrix)\}(?:\{[lcr| ]*\})?(.*)\\end\{\1\}", re.DOTALL
)
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True)
class Answer:
    """A parsed answer."""

    kind: Kind
    text: str  # the whole answer, normalised
    parts: tuple["Answer", ...] = ()
    brackets: str = ""  # of an interval or tuple, as "(]"
    columns: int = 0  # of a matrix
    signs: tuple[str, ...] = ()  # of a chain, between its parts


def spell(text: str) -> str:
    """Normalises LaTeX; \\text{...} and the like are kept."""
    text = characters.as_latex(text.strip().strip("$").strip())
    if not text.isdecimal():
        for pattern, replacement in _REPLACED if _SPECIAL.search(text) else ():
            text = pattern.sub(replacement, text)
        text = _SPACES.sub(" ", notation.as_latex(text)).strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].strip()
    return text


def inside(text: str) -> str | None:
    r"""Returns the content of a text that is one \text{...}, else None."""
    match = _TEXT.fullmatch(text.strip())
    return match[1].strip() if match else None


def words(text: str) -> str:
    """Replaces each \\text{...} by its content and removes spaces, braces and full stops."""
    return re.sub(r"[\s{}$\\.]", "", _TEXT.sub(r"\1", text))


def split(text: str, separators: str = ",;") -> list[str]:
    """Splits at separators outside all brackets."""
    parts, depth, start, index = [], 0, 0, 0
    while index < len(text):
        letter = text[index]
        if letter == "\\":
            escaped = text[index : index + 2]
            depth += {r"\{": 1, r"\}": -1}.get(escaped, 0)
            index += 2
            continue
        depth += (letter in _OPEN) - (letter in _CLOSE)
        if letter in separators and depth == 0:
            parts.append(text[start:index])
            start = index + 1
        index += 1
    return [part.strip() for part in [*parts, text[start:]]]


def _enclosed(text: str) -> tuple[str, str, str] | None:
    """Returns (opening, inside, closing) if one pair of brackets encloses the whole text."""
    for opening in (r"\{", "(", "["):
        if text.startswith(opening):
            closings = (r"\}",) if opening == r"\{" else (")", "]")
            for closing in closings:
                inside = text[len(opening) : len(text) - len(closing)]
                if text.endswith(closing) and _balanced(inside):
                    return opening, inside.strip(), closing
    return None


def _balanced(text: str) -> bool:
    depth = 0
    for letter in text.replace(r"\{", "(").replace(r"\}", ")"):
        depth += (letter in _OPEN) - (letter in _CLOSE)
        if depth < 0:
            return False
    return depth == 0


def thousands(text: str) -> bool:
    """Whether commas in a text group digits, as in 1,234,567."""
    return re.fullmatch(r"[-+]?\s*\\?\$?\s*\d{1,3}(,\d{3})+(\.\d+)?\b[^,]*", text) is not None


def parse(text: str) -> Answer:
    """Parses the outer structure of a normalised answer; without structure it is a scalar."""
    matrix = _MATRIX.fullmatch(text)
    if matrix and matrix[1] != "vmatrix":
        rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", matrix[2]) if row.strip()]
        cells = [split(row, "&") for row in rows]
        parts = tuple(parse(cell) for row in cells for cell in row)
        return Answer("matrix", text, parts, columns=len(cells[0]) if cells else 0)
    pieces = re.split(r"\\cup(?![a-zA-Z])", text)
    if len(pieces) > 1:
        return Answer("union", text, tuple(parse(piece.strip()) for piece in pieces))
    enclosed = _enclosed(text)
    if enclosed:
        opening, inside, closing = enclosed
        if opening == r"\{":
            return Answer("set", text, tuple(parse(p) for p in split(inside) if p))
        parts = split(inside)
        if len(parts) > 1 and not (opening + closing == "()" and thousands(inside)):
            kind = "tuple" if len(parts) > 2 or opening + closing == "()" else "interval"
            taken = tuple(parse(part) for part in parts)
            return Answer(kind, text, taken, brackets=opening + closing)
        return Answer("scalar", text)
    return _flat(text)


def _flat(text: str) -> Answer:
    """Parses a text without enclosing brackets: a list of solutions, a chain, or a scalar."""
    if "\\text" not in text or "," in text:
        opened = re.sub(
            r"\\text\s*\{\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])", ",", text
        )
    else:
        opened = re.sub(r"\\text\s*\{\s*(?:and|or)\s*\}", ",", text)
    parts = [part for part in split(opened) if part]
    if len(parts) > 1 and not thousands(text):
        return Answer("list", text, tuple(parse(part) for part in parts))
    sides = re.split(r"\\(?:pm|mp)(?![a-zA-Z])", text)
    if len(sides) == 2:
        plus, minus = ((sides[0] + sign + sides[1]).strip() for sign in ("+", "-"))
        return Answer("list", text, (Answer("scalar", plus), Answer("scalar", minus)))
    return _chain(text) or Answer("scalar", text)


def _chain(text: str) -> Answer | None:
    """Parses a chain of relations such as 2 < x < 5; None for a mere equation."""
    found = list(_SIGN.finditer(text))[: MOST_SIGNS + 1]
    signs = [match for match in found if _balanced(text[: match.start()])]
    if len(found) > MOST_SIGNS or all(match.group() == "=" for match in signs):
        return None
    starts = [0, *(match.end() for match in signs)]
    ends = [*(match.start() for match in signs), len(text)]
    sides = [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]
    if not all(sides):
        return None
    parts = tuple(Answer("scalar", side) for side in sides)
    return Answer("chain", text, parts, signs=tuple(match.group() for match in signs))
