"""Reads numbers as people write them, exactly, and compares them within a tolerance.

`1,234.5`, `-\\frac{3}{4}`, `1\\frac{1}{2}`, `2.5\\times10^{3}`, `12%`, `$3.2 million`, and
`(1,234)` for a loss. A value is a Fraction: nothing is rounded before the comparison.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from score_jax.records import Grade, Problem
from score_jax.rewards.extract import final_answer

RELATIVE, ABSOLUTE = Fraction(1, 10_000), Fraction(0)
SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "k": 10**3,
    "million": 10**6,
    "mn": 10**6,
    "billion": 10**9,
    "bn": 10**9,
    "trillion": 10**12,
}
LONGEST_NUMBER = 60  # characters
LARGEST_EXPONENT = 300
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_DECIMAL = re.compile(rf"(?P<value>{_DIGITS})(?:[eE](?P<exponent>[+-]?\d{{1,3}}))?")
_POWER = re.compile(
    rf"(?P<value>{_DIGITS})\s*(?:\\times|\\cdot|[x*×·])\s*10\s*(?:\^|\*\*)\s*\{{?(?P<exponent>[+-]?\d{{1,3}})\}}?"
)
_RATIO = re.compile(
    r"(?:(?P<whole>\d+)\s*)?\\frac\s*(?:\{\s*(?P<sign>-?)\s*(?P<over>\d+)\s*\}|(?P<over1>\d))\s*"
    r"(?:\{\s*(?P<under>\d+)\s*\}|(?P<under1>\d))"
    r"|(?:(?P<whole2>\d+)\s+)?(?P<over2>\d+)\s*/\s*(?P<under2>\d+)"
)
_CURRENCY = re.compile(r"\\?[$€£¥]|\b(?:USD|EUR|GBP|US)\b")
_WORDS = re.compile(r"\s*(?P<scale>[a-zA-Z]*)\s*(?P<unit>.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number with what stood around it."""

    value: Fraction
    percent: bool = False  # value 12 stands for 12%
    unit: str = ""  # lower case; empty if none was given


def _decimal(match: re.Match) -> Fraction:
    value = Fraction(match["value"].replace(",", "").rstrip(".") or "0")
    exponent = int(match["exponent"] or 0)
    if abs(exponent) > LARGEST_EXPONENT:
        raise ValueError("the exponent is too large")
    return value * Fraction(10) ** exponent


def _ratio(match: re.Match) -> Fraction:
    over = int(match["over"] or match["over1"] or match["over2"])
    under = int(match["under"] or match["under1"] or match["under2"])
    whole = int(match["whole"] or match["whole2"] or 0)
    value = Fraction(over, under)
    if match["sign"] and whole:
        raise ValueError("a mixed number with a sign inside")
    return -value if match["sign"] else whole + value


def parse(text: str) -> Quantity | None:
    """Reads a number with its unit, or returns None.

    Args:
      text: the whole answer; words before the number are not allowed, words after are its unit.
    """
    if re.search(r"(?![0-9])\d", text):
        return None  # other scripts' digits
    text = text.replace("−", "-").replace("{,}", ",").replace(r"\!", "").strip()
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\(?:d|t|c)frac", r"\\frac", text)
    text = re.sub(r"\\[,;: ]|~|\\quad", " ", text)
    text = _CURRENCY.sub("", text).strip()
    loss = re.fullmatch(rf"\(\s*({_DIGITS})\s*\)\s*(.*)", text)
    if loss and len(loss[1]) > 1:  # (1) is a number in parentheses, (1,234) a loss
        text = f"-{loss[1]} {loss[2]}"
    sign = re.match(r"[+-]\s*", text)
    body = text[sign.end() :] if sign else text
    for pattern, read in ((_RATIO, _ratio), (_POWER, _decimal), (_DECIMAL, _decimal)):
        match = pattern.match(body)
        if match and len(match.group()) <= LONGEST_NUMBER:
            try:
                value = read(match)
            except (ValueError, ZeroDivisionError):
                return None
            negative = sign is not None and sign.group().startswith("-")
            return _with_unit(-value if negative else value, body[match.end() :])
    return None


def _with_unit(value: Fraction, rest: str) -> Quantity | None:
    """Reads what follows a number: a percent sign, a scale, a unit in words."""
    rest = rest.strip().rstrip(".").strip()
    percent = re.match(r"\\?%|percent\b(?!age)|per cent\b", rest)
    if percent:
        rest = rest[percent.end() :].strip()
        return Quantity(value=value, percent=True) if not rest else None
    degrees = re.fullmatch(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|degrees?", rest)
    if degrees:
        return Quantity(value=value, unit="degree")
    if rest and not re.fullmatch(r"[a-zA-Z][a-zA-Z./ ]*(?:\^\s*\{?[23]\}?|[²³])?", rest):
        return None
    words = _WORDS.fullmatch(rest)
    assert words is not None, "the pattern matches every text"
    scale, unit = words["scale"].lower(), words["unit"]
    if scale in SCALES:
        return Quantity(value=value * SCALES[scale], unit=_plain_unit(unit))
    return Quantity(value=value, unit=_plain_unit(rest))


def _plain_unit(text: str) -> str:
    text = re.sub(r"[\s.{}]", "", text.lower()).replace("²", "^2").replace("³", "^3")
    return text[:-1] if len(text) > 3 and text.endswith("s") else text


def same(gold: Quantity, given: Quantity, *, relative: Fraction, absolute: Fraction) -> bool:
    """Whether two quantities agree.

    A unit or percent sign that only one of them has is passed over; 12%, 12 and 0.12 agree
    where one says percent.
    """
    if gold.unit and given.unit and gold.unit != given.unit:
        return False
    allowed = max(absolute, relative * abs(gold.value))
    values = {given.value}
    if gold.percent and not given.percent:
        values.add(given.value * 100)
    if given.percent and not gold.percent:
        values.add(given.value / 100)
    return any(abs(value - gold.value) <= allowed for value in values)


def without_tolerance(answer: str) -> str:
    """Returns a gold answer without its "+- 0.1"."""
    return _split_tolerance(answer)[0]


def _split_tolerance(answer: str) -> tuple[str, str]:
    text, _, tolerance = re.sub(r"±|\+/-|\\pm", "+-", answer).partition("+-")
    return text.strip(), tolerance


def grade(
    problem: Problem,
    response: str,
    *,
    relative: Fraction = RELATIVE,
    absolute: Fraction = ABSOLUTE,
) -> Grade:
    """Compares a response's final number with the gold one.

    Args:
      problem: its answer may bring its own tolerance: "12.5 +- 0.1" or "12.5 +- 2%".
      response: a model's text.
      relative: error allowed, as a share of the gold value.
      absolute: error allowed, in the answer's unit.

    Raises:
      ValueError: the gold answer is not a number.
    """
    text, tolerance = _split_tolerance(problem.answer)
    gold = parse(text)
    if gold is None:
        raise ValueError(f"problem {problem.id!r}: the answer {problem.answer!r} is not a number")
    if tolerance:
        allowed = parse(tolerance)
        if allowed is None:
            raise ValueError(f"problem {problem.id!r}: the tolerance {tolerance!r} is not a number")
        relative = allowed.value / 100 if allowed.percent else Fraction(0)
        absolute = Fraction(0) if allowed.percent else allowed.value
    answer = final_answer(response)
    given = None if answer is None else parse(answer)
    if given is None:
        detail = "no final answer" if answer is None else "the final answer is not a number"
        return Grade(verdict="unparsable", reward=0.0, extracted=answer, detail=detail)
    right = same(gold, given, relative=relative, absolute=absolute)
    return Grade(verdict="correct" if right else "wrong", reward=float(right), extracted=answer)
