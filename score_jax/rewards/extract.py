"""Finds the final answer in a response.

The last statement counts: a model that corrects itself states its answer again,
and a forged early line must not win over the end.
"""

import re

MARKER = re.compile(
    r"final answer(?: is)?\s*:|the final answer is|the answer is\s*:?|^####",
    re.IGNORECASE | re.MULTILINE,
)
CLOSING = re.compile(r"\s*\.?\s*I hope (?:it|this) is correct.*", re.IGNORECASE | re.DOTALL)
LEAD_IN = re.compile(r"(?:the (?:final )?answer is\s*:?\s*)+", re.IGNORECASE)
BOX = re.compile(r"\\(?:boxed|fbox)\s*")
LONGEST_ANSWER = 2000  # characters
TAIL = 20_000  # characters of a response that are searched: an answer stands at the end
MOST_BOXES = 20  # looked at from the end, for one that closes
LONGEST_PROSE = 30  # characters after "the answer is" that can still outweigh a box before it


def last_boxed(text: str) -> str | None:
    r"""Returns the content of the last balanced \boxed{...}, or None."""
    for match in list(BOX.finditer(text))[: -MOST_BOXES - 1 : -1]:
        if text[match.end() : match.end() + 1] == "{":
            end = closing_brace(text, match.end())
            if end is not None:
                return text[match.end() + 1 : end].strip()
        else:  # \boxed 5
            rest = re.match(r"[^\s$]+", text[match.end() :])
            if rest:
                return rest.group().rstrip(".,")
    return None


def closing_brace(text: str, start: int) -> int | None:
    """Returns the index of the brace that closes the one at `start`, or None."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None


def _strip_dollars(text: str) -> str:
    """Takes off one pair of math delimiters around the whole, and a full stop after it."""
    text = text.strip().strip("*").strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        inner = text[len(opening) : len(text) - len(closing)]
        if (
            len(text) >= len(opening) + len(closing)
            and text.startswith(opening)
            and text.endswith(closing)
            and opening not in inner
        ):
            return inner.strip()
    return text


def after_marker(text: str) -> str | None:
    """Returns what follows the last "Final Answer:" or "The answer is", up to the line's end."""
    matches = list(MARKER.finditer(text))
    if not matches:
        return None
    rest = text[matches[-1].end() :].lstrip(" \t*:").lstrip("\n")
    rest = CLOSING.sub("", rest)
    rest = LEAD_IN.sub("", rest, count=1) if LEAD_IN.match(rest) else rest
    if not rest.startswith(("$$", r"\[")):
        rest = rest.split("\n", 1)[0]
    return rest.strip() or None


def final_answer(text: str) -> str | None:
    r"""Returns the final answer as written, without delimiters; None if none is stated.

    Whichever stands last of a marker's line and a \boxed{} decides; a box on the
    marker's line is the answer of that line. A sentence that merely begins with "the
    answer is" does not outweigh a box.
    """
    text = text[-TAIL:]
    marked, boxed = after_marker(text), last_boxed(text)
    if marked is not None and last_boxed(marked) is not None:
        answer = last_boxed(marked)
    elif marked is None or (boxed is not None and (_box_is_later(text) or _is_prose(marked))):
        answer = boxed
    else:
        answer = _strip_dollars(marked)
    if not answer or len(answer) > LONGEST_ANSWER:
        return None
    return answer


def _box_is_later(text: str) -> bool:
    last_marker = max(match.end() for match in MARKER.finditer(text))
    return last_boxed(text[last_marker:]) is not None


def _is_prose(marked: str) -> bool:
    return len(marked) > LONGEST_PROSE and not marked.startswith(("$", r"\(", r"\["))
