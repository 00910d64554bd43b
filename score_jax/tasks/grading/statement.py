"""Parses the text after a marker: where the answer ends, and whether it is an answer."""

import re
from typing import Literal, NamedTuple

from score_jax.tasks.grading import plain

LONGEST_READ = 4000  # characters after a marker
LONGEST_PROSE = 30  # characters; longer prose is a sentence, not a name
Rank = Literal["answer", "name", "words", "remark", "denied"]
# title: "Final Answer:" or a heading; verb: "the answer is", which a remark may follow; hashes:
# "####", which may also be a section heading.
Marker = Literal["title", "verb", "hashes"]

_ATOM = (
    r"\$\$.*?\$\$|\$(?=\S)[^$\n]*?(?<=\S)\$(?!\d)|\\\(.*?\\\)|\\\[.*?\\\]"
    r"|\\boxed|\\(?:text|mbox)\s*\{[^{}]*\}"
)
_STOP = (
    r"(?<!\.)(?<!\.[A-Za-z])(?<!\bapprox)(?<!\bca)(?<!\bvs)(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)"
    r"(?<!\bNo)(?<!\bRs)[.?](?=[*_`\"”’]*\s+\S)"  # the end of a sentence
    r"|!(?=[*_`]*\s+[A-Z])"
    r"|,?\s+as\s+(?:expected|required|shown|stated|above|before|found|calculated|computed|desired"
    r"|claimed|it|we|I|in|the)\b|,?\s+(?:because|since|so|which|where|while|but|not|rather|instead|hence|therefore"
    r"|although|though|whereas|given|according|and\s+(?:not|this|that|it|we|I))\b"
    r"|,\s+(?:not|it|this|that|we|I|the)\b"
    r"|\s+\((?!mod|base|radian|degree)(?=[a-z]{2,}|[A-Z][a-z])"
    r"|\s+[—–]\s+(?=[A-Za-z]{2,})"
    r"|(?<=[\d$%})])\s+(?:of\s+(?:the|a|an)|in\s+(?:total|all)|altogether|respectively)\b"
)
_SPACE = re.compile(r"\s")
_CUT = re.compile(rf"(?P<atom>{_ATOM})|(?P<stop>{_STOP})", re.DOTALL)
_LEAD = re.compile(
    r"(?:(?:actually|indeed|still|therefore|thus|hence|then|simply|just|exactly|now|really|"
    r"equal to|given by|again|instead|also|clearly|definitely|approximately|about|roughly|only)"
    r"(?:\s*[,:]\s*|\s+))+",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:(?:definitely|certainly|clearly|surely)\s+)?(?:not|never|no longer)\s+", re.I
)
_BUT = re.compile(
    r"(?:\bbut|[.,;]\s*(?:it|this|that)(?:['’]s|\s+is|\s+should\s+be))"
    r"(?:\s+(?:rather|instead|is|actually))?\s+(.+)",
    re.DOTALL | re.IGNORECASE,
)
_STRUCK = re.compile(r"~~[^~\n]+~~\s*")
_REMARK = re.compile(
    r"(?:(?:also|not|indeed|now|still|quite|very|most likely|probably|really)\s+)*(?:(?:in)?correct"
    r"|right|wrong|(?:in)?accurate|(?:in)?valid|verified|confirmed|(?:in)?consistent|(?:un)?reasonable"
    r"|certain|sure|unchanged|simplified|already|expected|fine|ok|okay|complete|good|above|below"
    r"|see|boxed|shown|given|found|obtained|derived|based|positive|negative|integer|unique|exact"
    r"|final|rounded|expressed|written|in|as|the same|same|an?\s+[a-z0-9])\b"
    r"|\d+(?:\.\d+)?\s*\\?%\s*(?:correct|right|sure|certain|accurate|confident|verified)\b"
    r"|\d+[- ](?:digit|decimal|step|significant)",
    re.IGNORECASE,
)
_SIGN = r"(?:[-+±~≈<>≤≥]|\+-)?\s*"
_ANSWER = re.compile(
    rf"{_SIGN}(?:[$€£¥₹]?\s*[-+(]?\s*\.?\d|\\|\$|[^\x00-\x7f“”‘’]"
    r"|[(\[{]\s*(?:[-+\\$\d.]|[A-Za-z]\s*[,)\]}])"
    r"|[A-Za-z](?:'|_\w+)?\s*(?:$|[=<>^(+*/|,):.!-])|[A-Za-z]{2}\s*[=^(+*/]"
    r"|(?:arc)?(?:sin|cos|tan|cot|sec|csc)\b|(?:sqrt|log|ln|exp|pi|gcd|lcm|min|max|infinity)\b)"
)
_OPTION = re.compile(r"[(\[]?\s*[A-Za-z]\s*[)\].:]")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


class Reading(NamedTuple):
    """The result of parsing the text after a marker."""

    answer: str
    rank: Rank
    kept: str = ""  # the text up to the end of the answer


def cut(text: str) -> str:
    """Returns the first sentence or clause of a text."""
    if not _SPACE.search(text):
        return text
    for match in _CUT.finditer(text):
        if match["stop"] is not None and match.start() > 0:
            return text[: match.start()]
    return text


def looks_like_answer(text: str) -> bool:
    """Whether a text begins like an answer: with a number, a formula or a single letter."""
    if not _ANSWER.match(text):
        return False
    if len(text) <= LONGEST_PROSE or text.startswith(("$", "\\")) or _OPTION.match(text):
        return True
    return len(_WORD.findall(text)) < 4


def read(text: str, marker: Marker, *, below: bool) -> Reading:
    """Parses the text after a marker.

    Args:
      text: a line, a displayed formula or a fenced block.
      marker: the kind of marker before it.
      below: the text is on a line below the marker's.
    """
    text = text[:LONGEST_READ]
    body = plain.unfenced(text.strip().lstrip(plain.ORNAMENTS).strip())
    if "~~" in body:
        body = _STRUCK.sub("", body)
    body = plain.without_emphasis(body)
    if body[:1].isalpha() and (lead := _LEAD.match(body)):
        body = body[lead.end() :]
    if body[:1].isalpha() and (denied := _DENIED.match(body)):
        other = _BUT.search(body)
        if other:
            return read(other[1], marker, below=below)
        if looks_like_answer(plain.peel(cut(body[denied.end() :]))):
            return Reading(answer=text, rank="denied", kept=text)
    kept = cut(body)
    answer = plain.peel(kept)
    # `kept` is shorter than the original by removed emphasis; a few characters don't matter.
    return Reading(answer=answer, rank=_rank(answer, marker, below=below), kept=kept)


def _rank(answer: str, marker: Marker, *, below: bool) -> Rank:
    bare = answer
    if answer.startswith(r"\text"):
        bare = re.sub(r"^\\text\s*\{(.*)\}$", r"\1", answer)
    remark = len(bare) > 1 and bare[:1].isalnum() and bool(_REMARK.match(bare))
    if looks_like_answer(answer) and not remark:
        return "answer"
    if marker == "hashes" or (marker == "verb" and remark):
        return "remark"
    short = len(answer) <= LONGEST_PROSE and len(answer.split()) <= 3 and not remark
    return (
        "name" if short and (marker == "title" or (bare[:1].isupper() and not below)) else "words"
    )
