"""Parses numbers with units exactly, and compares them within a tolerance.

Examples: `1,234.5`, `-\\frac{3}{4}`, `1\\frac{1}{2}`, `2.5\\times10^{3}`, `12%`,
`$3.2 million`, `$3.2M`, and `(1,234)` for a loss. Values are Fractions, so that nothing is
rounded before the comparison.
"""

import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction

from score_jax.records import Grade, Problem
from score_jax.tasks.grading import plain
from score_jax.tasks.grading.extract import final_answer

RELATIVE, ABSOLUTE = Fraction(1, 10_000), Fraction(0)
SCALES = {
    **{"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9},
    **{"trillion": 10**12, "quadrillion": 10**15, "lakh": 10**5, "crore": 10**7},
    **{"mn": 10**6, "mio": 10**6, "mln": 10**6, "bn": 10**9, "bln": 10**9, "trn": 10**12},
}
OF_MONEY = {  # scales only with a currency, otherwise units: $5m against 5 m
    **{"k": 10**3, "m": 10**6, "mm": 10**6, "mil": 10**6, "b": 10**9, "t": 10**12, "tn": 10**12},
    **{"lac": 10**5, "cr": 10**7},
}
LETTERS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
UNITS_TOO = "KMT"  # may be units after a space: kelvin, molar, tesla
SHARES = {"permille": 1000, "basispoint": 10_000}  # per one; percent has a separate field
LONGEST_NUMBER = 60  # characters
LARGEST_EXPONENT = 300
_DIGITS = r"(?:\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+(?!\d))|\d+)(?:\.\d*)?|\.\d+"
_DECIMAL = re.compile(rf"(?P<value>{_DIGITS})(?:[eE](?P<exponent>[+-]?\d{{1,3}}))?")
_POWER = re.compile(
    rf"(?P<value>{_DIGITS})\s*(?:\\times|\\cdot|[x*×·])\s*10\s*(?:\^|\*\*)\s*\{{?(?P<exponent>[+-]?\d{{1,3}})\}}?"
)
_RATIO = re.compile(
    r"(?:(?P<whole>\d+)\s*)?\\frac\s*(?:\{\s*(?P<sign>-?)\s*(?P<over>\d+)\s*\}|(?P<over1>\d))\s*"
    r"(?:\{\s*(?P<under>\d+)\s*\}|(?P<under1>\d))"
    r"|(?:(?P<whole2>\d+)\s+)?(?P<over2>\d+)\s*/\s*(?P<under2>\d+)"
)
_CURRENCY = re.compile(
    r"(?:\b(?:US|A|C|HK|NZ|S))?\\?[$€£¥₹₩₽]"
    r"|(?<![a-zA-Z])(?:USD|EUR|GBP|JPY|CNY|RMB|INR|CHF|CAD|AUD|HKD|US|Rs\.?)(?![a-zA-Z])"
)
_MONEY = re.compile(r"\b(?:dollars?|euros?|rupees?|yen|yuan|francs?)\b", re.IGNORECASE)
_WORD = re.compile(r"\s*-?(?P<word>[a-zA-Z]+)(?![a-zA-Z/^²³])(?P<rest>.*)", re.DOTALL)
_SHARE = re.compile(
    r"(?P<percent>\\?%|percent\b|per cent\b|per (?:hundred|100)\b(?!,))"
    r"|(?P<permille>‰|per ?mille\b|per (?:thousand|1,?000)\b(?!,))"
    r"|(?P<basispoint>‱|bps?\b|basis points?\b)",
    re.IGNORECASE,
)
_BARE = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")  # of another script
_FRACTIONS = re.compile("[½¼¾⅐-⅞]")
_WORDS_OF_LATEX = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}")
_FRAC = re.compile(r"\\(?:d|t|c)frac")
_GAPS = re.compile(r"\\[,;: ]|~|\\quad")
_LOSS = re.compile(rf"\(\s*({_DIGITS})(\s*[a-zA-Z%]*)\s*\)\s*(.*)")
_SIGN = re.compile(r"[+-]\s*")
_NAMED = re.compile(r"[a-zA-Z][a-zA-Z_ ]*[=≈]\s*|[=≈~]\s*")


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number with its unit."""

    value: Fraction
    percent: bool = False  # value 12 means 12%
    unit: str = ""  # lower case, except the letters of `scale`; empty if there is none
    scale: int = 1  # factor of the unit if it is a letter such as M for a million
    glued: bool = False  # the letter is certainly a scale: no space, or no unit of that name


def _decimal(match: re.Match) -> Fraction:
    value = Fraction(re.sub("[, ]", "", match["value"]).rstrip(".") or "0")
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
    """Parses a number with its unit; None if the text is anything else.

    Args:
      text: the whole answer; words after the number are its unit, words before it are not
        allowed.
    """
    if _BARE.fullmatch(text) and len(text) <= LONGEST_NUMBER:  # fast path
        return Quantity(value=Fraction(text))
    if not text.isascii():
        if _OTHER_DIGIT.search(text):
            return None
        text = _FRACTIONS.sub(_written_out, text)
    text = _without_latex(plain.characters(text))
    text, currencies = _CURRENCY.subn("", text)
    money = bool(currencies or _MONEY.search(text))
    text = text.strip()
    loss = _LOSS.fullmatch(text)
    if loss and len(loss[1]) > 1:  # (1) is a number in parentheses, (1,234) a loss
        text = f"-{loss[1]}{loss[2]} {loss[3]}"
    sign = _SIGN.match(text)
    body = text[sign.end() :] if sign else text
    for pattern, read in ((_RATIO, _ratio), (_POWER, _decimal), (_DECIMAL, _decimal)):
        match = pattern.match(body)
        if match and len(match.group()) <= LONGEST_NUMBER:
            try:
                value = read(match)
            except (ValueError, ZeroDivisionError):
                return None
            negative = sign is not None and sign.group().startswith("-")
            return _with_unit(-value if negative else value, body[match.end() :], money=money)
    return None


def _without_latex(text: str) -> str:
    """Removes LaTeX's text commands and spaces; fractions are kept."""
    text = text.replace("–", "-").replace("{,}", ",").replace(r"\!", "").strip()
    if "\\" in text or "~" in text:
        text = _GAPS.sub(" ", _FRAC.sub(r"\\frac", _WORDS_OF_LATEX.sub(r" \1 ", text)))
    return text


def _written_out(match: re.Match) -> str:
    """Writes ½ as 1/2, with a space before it, so that 1½ is a mixed number."""
    return " " + unicodedata.normalize("NFKC", match.group()).replace("⁄", "/")


def _with_unit(value: Fraction, text: str, *, money: bool) -> Quantity | None:
    """Parses the text after a number: a percent sign, a scale or a unit; None for others."""
    rest = text.strip().rstrip(".").strip()
    share = _SHARE.match(rest)
    if share and not re.fullmatch(r"[a-zA-Z./ ]*", rest[share.end() :]):
        return None
    if share:
        percent = share.lastgroup == "percent"
        return Quantity(value=value, percent=percent, unit="" if percent else str(share.lastgroup))
    degrees = re.fullmatch(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|degrees?", rest)
    if degrees:
        return Quantity(value=value, unit="degree")
    scales = SCALES | OF_MONEY if money else SCALES
    while word := _WORD.match(rest):
        name = word["word"].lower()
        scale = scales.get(name) or scales.get(name.removesuffix("s"))
        if scale is None:
            break
        value, rest = value * scale, word["rest"].strip()
    if rest and not re.fullmatch(r"[a-zA-Z][a-zA-Z./ ]*(?:\^\s*\{?[23]\}?|[²³])?", rest):
        return None
    if rest[:1] in LETTERS and not rest[1:2].isalpha():
        glued = not text[:1].isspace() or rest[0] not in UNITS_TOO
        return Quantity(value=value, unit=rest[0], scale=LETTERS[rest[0]], glued=glued)
    return Quantity(value=value, unit=_plain_unit(rest))


def _plain_unit(text: str) -> str:
    text = re.sub(r"[\s.{}]", "", text.lower()).replace("²", "^2").replace("³", "^3")
    return text[:-1] if len(text) > 3 and text.endswith("s") else text


def same(gold: Quantity, given: Quantity, *, relative: Fraction, absolute: Fraction) -> bool:
    """Whether two quantities agree within the larger of both tolerances.

    A unit that only one of them has is ignored. If one is a percentage, 12%, 12 and 0.12
    agree. 1.5M is 1,500,000, but 300 K may also be kelvin.
    """
    if gold.scale == given.scale == 1:
        return _agree(gold, given, relative=relative, absolute=absolute)
    return any(
        _agree(one, other, relative=relative, absolute=absolute)
        for one in _readings(gold, given)
        for other in _readings(given, gold)
    )


def _readings(quantity: Quantity, other: Quantity) -> list[Quantity]:
    """The possible meanings of a number followed by a letter: a scale, a unit, or both."""
    as_unit = replace(quantity, scale=1)
    scaled = replace(as_unit, value=quantity.value * quantity.scale, unit="")
    if quantity.scale == 1 or (quantity.unit, quantity.scale) == (other.unit, other.scale):
        return [as_unit]
    return [scaled] if quantity.glued else [as_unit, scaled]


def _agree(gold: Quantity, given: Quantity, *, relative: Fraction, absolute: Fraction) -> bool:
    shares = [100 if q.percent else SHARES.get(q.unit, 1) for q in (gold, given)]
    allowed = max(absolute, relative * abs(gold.value))
    values = {given.value}
    if shares[0] != 1 or shares[1] != 1:
        both = shares[0] != 1 and shares[1] != 1
        values = {given.value * shares[0] / shares[1]} | (set() if both else values)
    elif gold.unit and given.unit and gold.unit != given.unit:
        return False
    return any(abs(value - gold.value) <= allowed for value in values)


def without_tolerance(answer: str) -> str:
    """Returns a gold answer without its tolerance, such as "+- 0.1"."""
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
      problem: its answer may include a tolerance: "12.5 +- 0.1" or "12.5 +- 2%".
      response: a model's text.
      relative: default tolerance, as a share of the gold value.
      absolute: default tolerance, in the answer's unit.

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
    given = None if answer is None else parse(_NAMED.sub("", answer, count=1).rstrip("!"))
    if given is None:
        detail = "no final answer" if answer is None else "the final answer is not a number"
        return Grade(verdict="unparsable", reward=0.0, extracted=answer, detail=detail)
    right = same(gold, given, relative=relative, absolute=absolute)
    return Grade(verdict="correct" if right else "wrong", reward=float(right), extracted=answer)
