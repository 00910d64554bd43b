r"""Extracts the final answer of a response.

An answer is stated in a \boxed{}, or after a marker ("Final Answer:", "The answer is",
"####", a heading). The last statement counts, since a model that corrects itself states its
answer again. Remarks on the answer ("The answer is correct."), denied answers and quoted
answers are ignored.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from score_jax.tasks.grading import plain
from score_jax.tasks.grading.statement import Marker, Reading, read

TAIL = 20_000  # characters at the end of a response that are searched
LONGEST_ANSWER = 2000  # characters
MOST = 30  # last boxes, and as many last mentions of an answer, that are examined

BOX = re.compile(r"\\(?:boxed|fbox)\s*")
NAMED = re.compile(  # in lower case; "answer (in cm):", "answer, then, is"
    r"(answer|ans|choice|option|result)(?:s(?![a-z])|(?!s?[a-z]))"
    r"(?:(?:[ \t]*\([^()\n]{1,40}\)|,[^,.\n]{1,30},)(?=[ \t*_]*(?:is\b|[:=])))?"
    r"|^####(?!#)",
    re.M,
)
_GAP = r"[\s*_`]{1,8}"
# What may precede a heading on its line.
_DRESS = rf"(?:[\s>#*_`$\d.){plain.ORNAMENTS}-]|\\[a-z]+\*?\{{)*"
_FINAL = re.compile(rf"{_DRESS}(?:the{_GAP})?final[\s*_`-]{{1,8}}$", re.IGNORECASE)
_ALONE = re.compile(
    rf"{_DRESS}(?:(?:the|my|final|correct(?:ed)?|right|new|revised|updated){_GAP}){{0,3}}$", re.I
)
_IS = re.compile(
    r"(?:[ \t]+(?:to|for|of|in)(?:[ \t]+[\w'-]+){1,8}?)?"
    rf"(?:{_GAP}(?:is|are|(?:should|must|would|will){_GAP}be|equals|becomes"
    r"|(?:comes|works)\s+out\s+to(?:\s+be)?|turns\s+out\s+to\s+be)|['’]s)\b",
    re.IGNORECASE,
)
_COLON = re.compile(r"[ \t*_`}]{0,8}(?=[:=—])")
_OPENING = re.compile(r"(?:\bfinal|\bcorrect(?:ed)?|[.!?:;,])[\s*_`-]{1,8}$", re.IGNORECASE)
_LINE_END = re.compile(r"[ \t*_`#}]*$", re.MULTILINE)
_STEP = re.compile(r"[ \t]*\d+[.)][ \t]+[A-Z]")  # "#### 2. Check", a heading
_SEPARATOR = re.compile(
    r"[*_`}]*(?:[ \t]*(?:[:—]|=(?!=)|(?:is|[–-])(?=[ \t]))(?:[*_`]+|[ \t]*\})*){0,3}"
)
_EMPTY_LINES = re.compile(r"(?:[ \t>*_]*\n|[ \t>]*(?:-{3,}|={3,})[ \t]*\n)+")
_BULLET = re.compile(r"[ \t>]*(?:(?:[-*+•]|\d+[.)])[ \t]+(?=\S))?")
_OPENED = {"$$": "$$", r"\[": r"\]", "```": "\n```"}
_OPENING_OF = re.compile("|".join(map(re.escape, _OPENED)))
_WORDED = re.compile(r"(?:\\(?:text|textbf|mbox|mathrm)\s*\{)?[A-Za-z][A-Za-z ,.'-]+\}?")
_QUOTED = re.compile(
    r"(?:\bnot|\binstead of|\brather than|\b(?:I|we|it) (?:wrote|said|gave|got|had|stated|claimed)"
    r"|\b(?:first|earlier|previous|last|initial|original|old|wrong|incorrect)(?:ly)?[ \t]+"
    r"(?:attempt|answer|solution|response|result|wrote|said|got)\b[^.\n]{0,30})[\s$:*(]*$",
    re.IGNORECASE,
)
_OLD = re.compile(
    r"\b(?:first|earlier|previous|initial|original|old|wrong|incorrect)[\s*_]+$", re.I
)


class Statement(NamedTuple):
    """A passage in which a response states an answer, or seems to."""

    start: int  # offset of the marker or box, in characters
    content_start: int  # offset of the stated text
    end: int
    text: str  # the stated text, unchanged
    reading: Reading
    box: bool = False
    quoted: bool = False  # quotes the answer of an earlier attempt


def last_boxed(text: str) -> str | None:
    r"""Returns the content of the last balanced \boxed{...}, or None."""
    for match in list(BOX.finditer(text))[: -MOST - 1 : -1]:
        found = _box(text, match)
        if found is not None:
            return found.text
    return None


def closing_brace(text: str, start: int) -> int | None:
    """Returns the index of the brace that closes the one at `start`, or None."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None


def _box(text: str, match: re.Match) -> Statement | None:
    """The statement of a box; None if it is not closed."""
    content, end = "", None
    if text[match.end() : match.end() + 1] == "{":
        end = closing_brace(text, match.end())
        content = text[match.end() + 1 : end].strip()
    elif rest := re.match(r"[^\s$]+", text[match.end() :]):  # \boxed 5
        end, content = match.end() + rest.end(), rest.group().rstrip(".,")
    if end is None:
        return None
    quoted = bool(_QUOTED.search(text[max(0, match.start() - 80) : match.start()]))
    offsets = (match.start(), match.end(), end)
    reading = Reading(answer=plain.peel(content), rank="answer")
    return Statement(*offsets, content, reading, box=True, quoted=quoted)


def _marker(text: str, named: re.Match) -> tuple[int, Marker] | None:
    """The end offset of a marker, and its kind; None if the word does not announce an answer."""
    start, end = named.span()
    if text[start - 1 : start].isalpha():  # unanswer
        return None
    if named[1] is None:
        return None if _STEP.match(text, end) else (end, "hashes")
    verb = _IS.match(text, end)
    if verb and named[1] != "result":
        return verb.end(), "verb"
    if named[1] not in ("answer", "ans", "result"):
        return None
    before = text[text.rfind("\n", 0, start) + 1 : start]
    if named[1] == "result" and not _OPENING.search(before):
        return None
    line_end, alone = _LINE_END.match(text, end), _ALONE.match(before)
    if line_end and alone:
        return line_end.end(), "title"
    if _FINAL.match(before) or (_COLON.match(text, end) and (alone or _OPENING.search(before))):
        return end, "title"
    return None


def _content(text: str, marker_end: int) -> tuple[int, int, bool]:
    """Start and end of the text after a marker, and whether it is below the marker's line.

    The text ends with its line, or with a displayed formula or fenced block.
    """
    skipped = _SEPARATOR.match(text, marker_end)
    assert skipped is not None, "the pattern matches the empty string"
    start = skipped.end()
    below = _EMPTY_LINES.match(text, start)
    if below:
        bullet = _BULLET.match(text, below.end())
        assert bullet is not None, "the pattern matches the empty string"
        start = bullet.end()
    while text[start : start + 1] in (" ", "\t"):
        start += 1
    if opened := _OPENING_OF.match(text, start):
        closing = _OPENED[opened.group()]
        end = text.find(closing, opened.end())
        if end >= 0:
            return start, end + len(closing), bool(below)
    end = text.find("\n", start)
    return start, len(text) if end < 0 else end, bool(below)


def _marked(text: str, named: re.Match) -> Statement | None:
    """The statement after a marker; None if the word is no marker."""
    marker = _marker(text, named)
    if marker is None:
        return None
    start, end, below = _content(text, marker[0])
    reading = read(text[start:end], marker[1], below=below)
    quoted = bool(_OLD.search(text[max(0, named.start() - 40) : named.start()]))
    offsets = (named.start(), start, start + len(reading.kept))
    return Statement(*offsets, text[start:end], reading, quoted=quoted)


def statements(text: str) -> Iterator[Statement]:
    """Yields the statements of a response, the last one first; of nested ones the innermost."""
    lowered = text.lower()
    if len(lowered) != len(text):  # some letters become two in lower case
        lowered = text
    boxes = list(BOX.finditer(text))[-MOST:] if "\\" in text else []
    named = list(NAMED.finditer(lowered))[-MOST:]
    following = len(text)
    for match in sorted(boxes + named, key=lambda match: -match.start()):
        found = (_box if text.startswith("\\", match.start()) else _marked)(text, match)
        if found is None:
            continue
        if found.reading.answer and not found.start < following < found.end:
            yield found
        following = found.start


def final_statement(text: str) -> Statement | None:
    """Returns the statement of the final answer, or None.

    This is the last one that is no remark, denial or quotation. A statement of words only
    ("The answer is unique") is overruled by an earlier box, but not by an earlier marker; a
    name only by a box that contains no words.
    """
    words: Statement | None = None
    last: Statement | None = None
    for statement in statements(plain.characters(text[-TAIL:])):
        rank = statement.reading.rank
        if rank == "denied":
            continue
        last = last or statement
        if statement.quoted or rank == "remark":
            continue
        if rank == "answer" and words is None:
            return statement
        if statement.box and words is not None:
            named = words.reading.rank == "name" and _WORDED.fullmatch(statement.text)
            return words if named else statement
        words = words or statement
    return words or last


def final_answer(text: str) -> str | None:
    """Returns the final answer without emphasis, quotes or delimiters; None if none is stated."""
    found = final_statement(text)
    if found is None or not 0 < len(found.reading.answer) <= LONGEST_ANSWER:
        return None
    return found.reading.answer


def spellings(text: str) -> list[str]:
    """Returns the final answer unchanged, then with each wrapping layer removed in turn."""
    found = final_statement(text)
    if found is None:
        return []
    if found.text == found.reading.answer:
        return [found.text]
    inner = re.fullmatch(r"\\(?:text|mbox|mathrm)\s*\{([^{}]*)\}", found.reading.answer)
    return [
        *plain.layers(found.text),
        *plain.layers(found.reading.kept),
        inner[1].strip() if inner else found.reading.answer,
    ]


def spellings_of_lines(text: str) -> list[str]:
    """As `spellings`, for an answer of several lines: all text after each marker."""
    text = plain.characters(text[-TAIL:])
    contents = (text[statement.content_start :].strip() for statement in statements(text))
    return [spelling for content in contents for spelling in plain.layers(content)]
