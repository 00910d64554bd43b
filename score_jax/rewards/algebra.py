"""Decides whether two mathematical answers are equal: text, then number, then symbols.

Structure is compared on the text (`latex.py`), numbers exactly (`numeric.py`); only
what is left goes to math-verify and SymPy, after a guard has refused expressions
whose evaluation would not end. SymPy can still run away: this module is for
grading workers, whose pool ends it.
"""

import itertools
import re
from fractions import Fraction

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Eq, Expr, Float, I, Symbol, simplify
from sympy.core.basic import Basic

from score_jax.rewards import latex, numeric
from score_jax.rewards.latex import Answer

LONGEST_EXPRESSION = 400  # characters
DEEPEST = 12  # brackets within brackets
LARGEST_POWER = 1000  # a literal exponent, a number under a factorial or in a binomial
MOST_PARTS = 50  # of a list or matrix
DIGITS = 40  # to which constants are compared

_BIG = re.compile(r"\d{5,}")
_ASSIGNED = re.compile(r"^\s*(?:[a-zA-Z](?:_\{?\w+\}?)?(?:\s*\(\s*[a-zA-Z]\s*\))?'?)\s*=\s*(?!=)")
_POINT = re.compile(r"^\s*\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])+\s*\)\s*=\s*")
_BASED = re.compile(r"(\d+)_\{?(\d+)\}?")
_MEMBER = re.compile(r"^\s*[a-zA-Z]\s*\\in(?![a-zA-Z])\s*")


def _depth(text: str) -> int:
    depth = deepest = 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        deepest = max(deepest, depth)
    return deepest


def too_large(text: str) -> str:
    """Says why an expression must not be evaluated, or returns ""."""
    if len(text) > LONGEST_EXPRESSION:
        return f"{len(text)} characters"
    if _depth(text) > DEEPEST:
        return "brackets too deep"
    flat = re.sub(r"[\s{}()]", "", text)
    if re.search(r"\^-?\d+(?:\.\d+)?\^|\^-?\d+!", flat):
        return "a tower of powers"
    powers = [int(number[:9]) for number in re.findall(r"\^-?(\d+)", flat)]
    if any(power > LARGEST_POWER for power in powers):
        return "a huge power"
    if re.search(r"!!|\^\S*!|!\s*\^", flat) or ("!" in flat and _BIG.search(flat)):
        return "a huge factorial"
    if re.search(r"binom|choose|\bC_|Gamma|zeta|\\sum|\\prod|\\int|\\lim", text) and (
        _BIG.search(flat) or powers
    ):
        return "a huge sum or binomial"
    return ""


def _symbols(text: str) -> Basic | None:
    """Parses LaTeX without evaluating Python; None if it is not mathematics."""
    config = LatexExtractionConfig(boxed_match_priority=-1)
    text = re.sub(r"(\d+)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)", r"(\1\\cdot\\frac{\\pi}{180})", text)
    found = parse(f"${text}$", [config], fallback_mode="no_fallback", parsing_timeout=0)
    if not found or not isinstance(found[0], Basic):
        return None
    parsed = found[0]
    return parsed.subs(
        {s: I for s in parsed.free_symbols if isinstance(s, Symbol) and s.name == "i"}
    )


def _letters(text: str) -> set[str]:
    return set(re.sub(r"\\[a-zA-Z]+|[^a-zA-Z]", "", text))


def _same_symbols(gold: str, given: str) -> bool:
    if too_large(gold) or too_large(given):
        return False
    first, second = _letters(gold), _letters(given)
    if first != second and {x.lower() for x in first} == {x.lower() for x in second}:
        return False  # a and A are two variables; math-verify reads them as one
    left, right = _symbols(gold), _symbols(given)
    if left is None or right is None or isinstance(left, Eq) != isinstance(right, Eq):
        return False
    if isinstance(left, Eq) and isinstance(right, Eq):
        return _same_equations(left, right)
    if isinstance(left, Expr) and isinstance(right, Expr) and _far_apart(left, right):
        return False
    return verify(left, right, timeout_seconds=None)


def _far_apart(left: Expr, right: Expr) -> bool:
    """Whether two constants differ; 3.14159265 is not pi, though math-verify rounds it so."""
    if left.free_symbols or right.free_symbols:
        return False
    size, difference = abs(left.evalf(DIGITS)), abs((left - right).evalf(DIGITS, maxn=200))
    if not (size.is_Float and difference.is_Float):
        return False
    return bool(difference > Float(10) ** (-DIGITS // 2) * (1 + size))


def _difference(equation: Eq) -> Expr | None:
    left, right = equation.lhs, equation.rhs
    return left - right if isinstance(left, Expr) and isinstance(right, Expr) else None


def _same_equations(left: Eq, right: Eq) -> bool:
    """Whether one equation is the other times a number."""
    first, second = _difference(left), _difference(right)
    if first is None or second is None:
        return left == right
    if first == 0 or second == 0:
        return first == second
    ratio = simplify(first / second)
    return bool(ratio.is_number and ratio != 0)


def _same_scalar(gold: str, given: str) -> bool:
    if latex.words(gold) == latex.words(given) and _is_text(gold):
        return True
    if re.sub(r"\s", "", gold) == re.sub(r"\s", "", given):
        return True
    bases = _BASED.fullmatch(gold), _BASED.fullmatch(given)
    if any(bases):
        return (
            bases[0] is not None and bases[1] is not None and bases[0].groups() == bases[1].groups()
        )
    if _is_text(gold):
        return _letter(gold) is not None and _letter(gold) == _letter(given)
    first, second = numeric.parse(gold), numeric.parse(given)
    if first and second and _exact_units(first, second):
        return numeric.same(first, second, relative=Fraction(0), absolute=Fraction(0))
    if first and second:
        return False
    gold, given = _without_unit(gold), _without_unit(given)
    return gold == given or _same_symbols(gold, given)


def _exact_units(*quantities: numeric.Quantity) -> bool:
    """Single letters after a number are variables (3x), not units."""
    return all(len(quantity.unit) != 1 or quantity.unit in "mgls" for quantity in quantities)


def _without_unit(text: str) -> str:
    """Takes off a unit in \\text after an expression, a degree sign, currency and percent."""
    text = re.sub(r"\\(?:text|mbox|mathrm|textrm)\s*\{[^{}]*\}\s*(?:\^\s*\{?\d\}?)?\s*$", "", text)
    if not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*$|°\s*$", "", text)
    return re.sub(r"^\\\$|\\?%\s*$", "", text.strip()).strip()


def _is_text(text: str) -> bool:
    """Whether an answer is words rather than mathematics."""
    if re.fullmatch(r"\s*\\(?:text|mbox|textbf|mathrm)\s*\{[^{}]*\}\s*", text):
        return True
    opened = re.sub(r"\\[a-zA-Z]+", " ", text)
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z\s,.'-]*", opened.strip())) and bool(
        re.search(r"[A-Za-z]{3,}", opened)
    )


def _letter(text: str) -> str | None:
    match = re.fullmatch(r"\(?([a-z])\)?", latex.words(text))
    return match[1] if match else None


def _match_in_any_order(gold: tuple[Answer, ...], given: tuple[Answer, ...]) -> bool:
    """Whether the parts can be paired so that each pair is equal."""
    left = list(given)
    for part in gold:
        exact = next((other for other in left if other.text == part.text), None)
        found = exact or next((other for other in left if same(part, other)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _unassigned(parts: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """Takes "x =" off the parts of a list if it names one variable only."""
    found = [_ASSIGNED.match(part.text) for part in parts]
    names = {match.group().strip() for match in found if match}
    if len(names) != 1 or not found[0]:
        return parts
    return tuple(
        latex.take_apart(part.text[match.end() :]) if match else part
        for part, match in zip(parts, found, strict=True)
    )


def _distinct(parts: tuple[Answer, ...]) -> tuple[Answer, ...]:
    kept: list[Answer] = []
    for part in parts:
        if not any(other.text == part.text for other in kept):
            kept.append(part)
    return tuple(kept)


def same(gold: Answer, given: Answer) -> bool:
    """Whether two answers are equal in kind and value."""
    if gold.text == given.text:
        return True
    if max(len(gold.parts), len(given.parts)) > MOST_PARTS:
        return False
    unordered = ("list", "set")
    if gold.kind in unordered and given.kind in unordered:
        parts = _unassigned(gold.parts), _unassigned(given.parts)
        return _match_in_any_order(_distinct(parts[0]), _distinct(parts[1]))
    if gold.kind in unordered and len(gold.parts) == 1:
        return same(gold.parts[0], given)
    if gold.kind != given.kind:
        return False
    if gold.kind == "scalar":
        return _same_scalar(gold.text, given.text)
    if len(gold.parts) != len(given.parts):
        return False
    if gold.kind == "union":
        return _match_in_any_order(gold.parts, given.parts)
    if gold.brackets != given.brackets or gold.columns != given.columns:
        return False
    return all(itertools.starmap(same, zip(gold.parts, given.parts, strict=True)))


def _bare(text: str, other: str) -> str:
    """Takes off "x =" and "x \\in" where the other side does without or names the same."""
    for pattern in (_ASSIGNED, _POINT, _MEMBER):
        match = pattern.match(text)
        if match and text.count("=") <= 1:
            theirs = pattern.match(other)
            if theirs is None and "=" not in other:
                return text[match.end() :]
            if theirs and re.sub(r"\s", "", theirs.group()) == re.sub(r"\s", "", match.group()):
                return text[match.end() :]
    return text


def equal(gold: str, given: str) -> bool:
    """Whether two final answers are equal.

    Args:
      gold: LaTeX, or plain text.
      given: what a model states, untrusted.
    """
    gold, given = latex.spell(gold), latex.spell(given)
    gold, given = _bare(gold, given), _bare(given, gold)
    return same(latex.take_apart(gold), latex.take_apart(given))
