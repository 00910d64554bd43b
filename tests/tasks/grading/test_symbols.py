"""Expected values: mpmath at 300 digits, or algebra by hand."""

import mpmath
import pytest

from score_jax.tasks.grading import symbols


@pytest.mark.parametrize(
    ("gold", "given", "value", "other"),
    [
        (r"\sqrt{2}^{9}", r"16\sqrt{2}", "sqrt(2)**9", "16*sqrt(2)"),
        (r"e^{\pi\sqrt{163}}", "262537412640768744", "exp(pi*sqrt(163))", "262537412640768744"),
        (r"\sqrt{2}+\frac{1}{10^{90}}", r"\sqrt{2}", "sqrt(2)+mpf(10)**-90", "sqrt(2)"),
        (r"\sin(\frac{1}{10^{30}})", r"\frac{1}{10^{30}}", "sin(mpf(10)**-30)", "mpf(10)**-30"),
        (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}", "sqrt(3+2*sqrt(2))", "1+sqrt(2)"),
        (r"\ln(2)+\ln(3)", r"\ln(6)", "log(2)+log(3)", "log(6)"),
        (r"\cos(\frac{\pi}{5})", r"\frac{1+\sqrt{5}}{4}", "cos(pi/5)", "(1+sqrt(5))/4"),
        (r"\frac{\pi}{2^{80}}", r"\frac{\pi}{2^{81}}", "pi/2**80", "pi/2**81"),
    ],
)
def test_constants_are_equal_if_three_hundred_digits_agree(gold, given, value, other):
    with mpmath.workdps(300):
        names = {
            name: getattr(mpmath, name)
            for name in ("sqrt", "exp", "pi", "mpf", "sin", "cos", "log")
        }
        first, second = (mpmath.mpmathify(eval(text, names)) for text in (value, other))
        expected = bool(abs(first - second) < mpmath.mpf(10) ** -280 * abs(first))
    assert symbols.equal(gold, given) == expected


@pytest.mark.parametrize(
    ("gold", "given", "expected"),
    [
        ("(x+y)^3", "x^3+3x^2y+3xy^2+y^3", True),
        (r"\sin^2 x + \cos^2 x", "1", True),
        (r"\frac{x^2-1}{x-1}", "x+1", True),
        (r"\frac{x}{2^{70}}", "0", False),
        (r"\sqrt{x^2}", "x", False),
        ("|x|", "x", False),
        ("x", "y", False),
        (r"\frac{1}{0}", r"\frac{2}{0}", False),
        (r"\infty", r"-\infty", False),
        ("2d", "2", False),
        ("2x+4y=6", "x+2y=3", True),
        (r"x=\frac{1}{2^{70}}", r"x=\frac{1}{2^{71}}", False),
    ],
)
def test_expressions_are_equal_for_all_values(gold, given, expected):
    assert symbols.equal(gold, given) == expected


@pytest.mark.parametrize(
    ("sign", "gold", "given", "expected"),
    [
        ("<", ("2", "x"), ("4", "2x"), True),
        ("<", ("2", "x"), ("-x", "-2"), True),
        ("<", ("2", "x"), ("x", "2"), False),
        (r"\ne", ("x", "3"), ("3", "x"), True),
        (r"\le", ("a", "b"), ("a^2", "b^2"), False),
        ("=", ("x", "3"), ("6", "2x"), True),
    ],
)
def test_relations_are_equal_up_to_a_factor(sign, gold, given, expected):
    assert symbols.same_relation(sign, gold, given) == expected
