r"""Rewrites calculator notation and repeating decimals as LaTeX.

Examples: `x**2`, `sqrt(2)`, `pi/3`, `1e6`, `2 <= x`, `0.1(6)`. Only decimals are evaluated,
exactly: `0.\overline{3}` becomes `\frac{1}{3}`, and `1.5e-3` becomes `0.0015`.
"""

import re
from decimal import Decimal
from fractions import Fraction

LONGEST_PERIOD = 40  # digits of a repeating decimal, before and within its period
LARGEST_SHIFT = 40  # powers of ten up to this exponent are written out

_TEXT = r"\\(?:text\w*|mbox|mathrm)\s*\{[^{}]*\}"  # left unchanged
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|log|ln"
_GREEK = (  # without mu, nu, xi, which may be products of variables
    "alpha|beta|gamma|delta|epsilon|zeta|theta|kappa|lambda|pi|rho|sigma|tau|phi|omega|"
    "Gamma|Delta|Theta|Lambda|Sigma|Phi|Omega"
)
_ARGUMENT = rf"\s*(?:[\\({{^_|\d]|[a-zA-Z](?![a-zA-Z])|{_GREEK})"  # 5 sec has none
_UPRIGHT = re.compile(
    rf"\\(?:mathrm|text|textrm)\s*\{{\s*([ei]|\\?pi|(?:a(?:rc)?)?(?:{_FUNCTIONS}))\s*\}}"
)
_DONE = re.compile(  # texts of digits, signs and LaTeX only, with nothing to rewrite
    r"(?:[-\d\s,{}()\[\]$%&;|=]|/(?!\d+\s)|\+(?!/)|\\(?!sqrt\s*[\[(]|exp)[a-zA-Z]+|\\[^a-zA-Z])*"
)
_WORD = re.compile(
    rf"{_TEXT}|(?<![a-zA-Z\\])(?:"
    rf"(?P<inverse>a(?:rc)?)?(?P<function>{_FUNCTIONS})"
    rf"(?:(?=[xyz](?![a-zA-Z]))|(?![a-zA-Z])(?={_ARGUMENT}))"
    rf"|(?P<greek>{_GREEK})(?![a-zA-Z])|(?P<infinity>infinity|Infinity|inf|oo)(?![a-zA-Z]))"
)
_CALL = re.compile(r"((?<![a-zA-Z])(?:\\?sqrt|cbrt|abs|\\?exp)|\\sqrt\[\d\]|\^)\s*\(")
_OPENINGS = {"sqrt": r"\sqrt{", "cbrt": r"\sqrt[3]{", "abs": "|", "exp": "e^{"}
_SIGNS = (
    (re.compile(r"(?<=[\w)}\]!])\s*\*\*\s*(?=[-+\w({\\.])"), "^"),
    (re.compile(r"\^\s*([-+]?\d+(?:\.\d+)?)"), r"^{\1}"),
    (re.compile(r"(?<![a-zA-Z\\])sqrt\s*(\d+)"), r"\\sqrt{\1}"),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"(?<!\d)!="), r"\\ne "),
    (re.compile(r"\+/-"), r"\\pm "),
    (re.compile(r"(?<=[)\]}])\s*U\s*(?=[(\[]|\\\{)"), r"\\cup "),
    (re.compile(r"(?<![\w.^/}])(\d+)/(\d+)\s+(?=[a-zA-Z\\])"), r"\\frac{\1}{\2} "),
    (re.compile(r"(?<![a-zA-Z\\])log_?(\d+)\s*(?=\()"), r"\\log_{\1}"),
)
_SCIENTIFIC = re.compile(
    r"(?<![\w.\\])(?P<number>(?P<mantissa>\d+\.?\d*|\.\d+)[eE](?P<sign>[+-]?)\d{1,4})(?![\w.^!])"
)
_DOTS = r"\s*(?:\.\.+|\\[lc]?dots(?![a-zA-Z]))"
_REPEATING = re.compile(
    r"(?<![\d.])(?P<whole>\d{1,3}(?:,\d{3})+|\d*)\.\s*(?P<start>\d*)\s*(?:"
    r"\\(?:overline|bar)\s*(?:\{\s*(?P<lined>\d+)\s*\}|(?P<barred>\d))"
    r"|\((?P<bracketed>\d+)\)"
    r"|\\dot\s*\{?(?P<first>\d)\}?(?:(?P<middle>\d*)\\dot\s*\{?(?P<last>\d)\}?)?"
    rf"|(?<=\d)(?={_DOTS}))(?:{_DOTS})?(?!\s*[\d_])"
)
_PERIOD = re.compile(r"(?P<start>\d*?)(?:(?P<one>\d)(?P=one){2,}|(?P<more>\d{2,}?)(?P=more)+)")


def _word(match: re.Match) -> str:
    if match["function"]:
        return f"\\{'arc' if match['inverse'] else ''}{match['function']} "
    if match["greek"]:
        return f"\\{match['greek']} "
    return r"\infty " if match["infinity"] else match.group()


def _closing(text: str, start: int) -> int | None:
    """Returns the index of the parenthesis that closes the one at `start`, or None."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    return None


def _calls(text: str) -> str:
    """Rewrites sqrt(...), abs(...), exp(...) and ^(...), from the last to the first."""
    for match in reversed(list(_CALL.finditer(text))):
        end = _closing(text, match.end() - 1)
        if end is None:
            continue
        opening = _OPENINGS.get(match[1].lstrip("\\"), match[1] + "{")
        closing = "|" if match[1] == "abs" else "}"
        inside = text[match.end() : end]
        text = text[: match.start()] + opening + inside + closing + text[end + 1 :]
    return text


def _scientific(match: re.Match) -> str:
    r"""Writes a power of ten out, but not 5e-3, which may mean Euler's number: 5 e - 3."""
    if match["sign"] and match["mantissa"].isdigit() and int(match["mantissa"]) != 1:
        return match.group()
    number = Decimal(match["number"])
    shift = number.as_tuple().exponent
    if isinstance(shift, int) and abs(shift) <= LARGEST_SHIFT:
        return format(number, "f")
    mantissa, _, exponent = match["number"].lower().partition("e")
    return rf"{mantissa} \times 10^{{{int(exponent)}}}"


def _fraction(match: re.Match) -> str:
    """Writes a repeating decimal as a fraction; 0.1234... has no period and is unchanged."""
    start = match["start"]
    period = match["lined"] or match["barred"] or match["bracketed"]
    if match["first"]:
        period = match["first"] + (match["middle"] or "") + (match["last"] or "")
    elif period is None:
        found = _PERIOD.fullmatch(start) if len(start) <= LONGEST_PERIOD else None
        if found is None:
            return match.group()
        start, period = found["start"], found["one"] or found["more"]
    if len(start + period) > LONGEST_PERIOD:
        return match.group()
    whole = match["whole"].replace(",", "")
    nines = 10 ** len(start) * (10 ** len(period) - 1)
    value = Fraction(int(whole + start + period) - int(whole + start or "0"), nines)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def as_latex(text: str) -> str:
    """Rewrites a text's calculator notation as LaTeX."""
    if _DONE.fullmatch(text):
        return text
    text = _UPRIGHT.sub(r"\1 ", text)
    if "." in text:
        text = _REPEATING.sub(_fraction, text)
    text = _SCIENTIFIC.sub(_scientific, text)
    for pattern, replacement in _SIGNS:
        text = pattern.sub(replacement, text)
    return _WORD.sub(_word, _calls(text))
