"""Compares two expressions exactly with SymPy, without rounding to decimal places.

Expressions are parsed by math-verify's LaTeX grammar, which evaluates no Python. A
difference is evaluated to ten significant digits, however small it is, so that 1/2^70
differs from 1/2^71, and 10^-30 from 0. If the digits cannot be computed, the difference
may be zero, and SymPy must prove it. The caller excludes expressions whose evaluation
would not terminate.
"""

import re
from collections.abc import Iterator
from typing import TypeGuard, cast

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import (
    Eq,
    Expr,
    Float,
    I,
    MatrixBase,
    MatrixExpr,
    N,
    Number,
    Rational,
    Symbol,
    nan,
    simplify,
    zoo,
)
from sympy.core.basic import Basic
from sympy.core.evalf import PrecisionExhausted

DIGITS = 10  # significant digits of the difference of two constants
MOST_DIGITS = 150  # of intermediate results; beyond it zero needs a proof

_CONFIG = LatexExtractionConfig(
    boxed_match_priority=-1,
    # without units: math-verify takes the d of 2d as a unit
    normalization_config=NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True),
)


def read(text: str) -> Basic | None:
    """Parses LaTeX; None if it is not mathematics."""
    text = re.sub(r"(\d+)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)", r"(\1\\cdot\\frac{\\pi}{180})", text)
    text = re.sub(r"(?<![a-zA-Z\\])([a-df-hj-zA-Z])(\d+)", r"\1_{\2}", text)  # x1 is no product
    found = parse(f"${text}$", [_CONFIG], fallback_mode="no_fallback", parsing_timeout=0)
    if not found or not isinstance(found[0], Basic):
        return None
    parsed = found[0]
    return parsed.subs(
        {s: I for s in parsed.free_symbols if isinstance(s, Symbol) and s.name == "i"}
    )


def equal(gold: str, given: str) -> bool:
    """Whether two expressions or equations are equal."""
    left, right = read(gold), read(given)
    if left is None or right is None or isinstance(left, Eq) != isinstance(right, Eq):
        return False
    if isinstance(left, Eq) and isinstance(right, Eq):
        return _same_equations(left, right)
    if _is_expression(left) and _is_expression(right):
        return _same_expressions(_exact(left), _exact(right))
    return verify(left, right, timeout_seconds=None)


def same_relation(sign: str, gold: tuple[str, str], given: tuple[str, str]) -> bool:
    """Whether two relations with the same sign are equivalent, such as 2x > 6 and x > 3.

    The differences of their sides must be proportional, with a positive factor unless the
    sign is "=" or "\\ne".

    Args:
      sign: of both relations.
      gold: left and right side of one.
      given: left and right side of the other.
    """
    found = [read(text) for text in (*gold, *given)]
    sides = [_exact(side) for side in found if side is not None and _is_expression(side)]
    if len(sides) < 4:
        return False
    ratio = _ratio(sides[0] - sides[1], sides[2] - sides[3])
    return ratio is not None and (sign in ("=", r"\ne") or bool(ratio.is_positive))


def _is_expression(found: Basic) -> TypeGuard[Expr]:
    return isinstance(found, Expr) and not isinstance(found, MatrixExpr | MatrixBase)


def _exact(expression: Expr) -> Expr:
    """Evaluates an expression, with decimals converted to exact fractions."""
    decimals = {number: Rational(str(number)) for number in expression.atoms(Float)}
    return cast(Expr, expression.xreplace(decimals).doit())


def _same_expressions(left: Expr, right: Expr) -> bool:
    if left.has(nan, zoo) or right.has(nan, zoo):
        return False
    if left == right:
        return True
    if (left.is_Rational and right.is_Rational) or left.is_infinite or right.is_infinite:
        return False
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    point = list(zip(symbols, _values(), strict=False))
    if _is_nonzero((left - right).subs(point)):
        return False
    difference = simplify(left - right)
    if difference.is_zero is not None:
        return bool(difference.is_zero)
    return not symbols and bool(difference.equals(0))


def _values() -> Iterator[Basic]:
    """Yields distinct positive numbers near 1, so that their powers stay moderate."""
    number = 1009
    while True:
        yield Rational(number, 997)
        number += 101


def _is_nonzero(constant: Basic) -> bool:
    """Whether a constant is certainly not zero."""
    try:
        size = abs(N(constant, DIGITS, maxn=MOST_DIGITS, strict=True))
    except PrecisionExhausted:
        return False  # possibly an exact zero
    return isinstance(size, Number) and size != 0


def _ratio(first: Expr, second: Expr) -> Expr | None:
    """Returns first / second if it is a number other than zero, else None."""
    if first == 0 or second == 0:
        return None
    ratio = simplify(first / second)
    return ratio if ratio.is_number and ratio != 0 else None


def _difference(equation: Eq) -> Expr | None:
    left, right = equation.lhs, equation.rhs
    if not (_is_expression(left) and _is_expression(right)):
        return None
    return _exact(left) - _exact(right)


def _same_equations(left: Eq, right: Eq) -> bool:
    """Whether one equation is a multiple of the other."""
    first, second = _difference(left), _difference(right)
    if first is None or second is None:
        return left == right
    if first == 0 or second == 0:
        return first == second
    return _ratio(first, second) is not None
