import pytest

from score_jax.tasks.grading.notation import as_latex


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x**2", "x^{2}"),
        ("x**(n+1)", "x^{n+1}"),
        ("sqrt(sqrt(2)+1)", r"\sqrt{\sqrt{2}+1}"),
        ("cbrt(8)", r"\sqrt[3]{8}"),
        ("exp(-x)", "e^{-x}"),
        ("abs(-3)", "|-3|"),
        ("2*pi", r"2*\pi "),
        ("asin(x)", r"\arcsin (x)"),
        ("sinx", r"\sin x"),
        ("log_2(8)", r"\log_{2}(8)"),
        (r"\mathrm{e}^2", "e ^{2}"),
        ("x >= 2", r"x \ge  2"),
        ("(1,2) U (3,4)", r"(1,2)\cup (3,4)"),
        ("(-oo, 1]", r"(-\infty , 1]"),
    ],
)
def test_calculator_notation_becomes_latex(text, expected):
    assert as_latex(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"0.\overline{3}", r"\frac{1}{3}"),
        (r"0.1\bar6", r"\frac{1}{6}"),
        ("0.(142857)", r"\frac{1}{7}"),
        (r"0.\dot{1}4285\dot{7}", r"\frac{1}{7}"),
        ("2.0909...", r"\frac{23}{11}"),
        (r"1,234.\overline{5}", r"\frac{11111}{9}"),
        (r".\overline{9}", r"\frac{1}{1}"),
    ],
)
def test_repeating_decimals_become_fractions(text, expected):
    assert as_latex(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e6", "1000000"),
        ("1.5e-3", "0.0015"),
        (".5E1", "5"),
        ("1e-6", "0.000001"),
        ("1e400", r"1 \times 10^{400}"),
    ],
)
def test_powers_of_ten_are_written_out(text, expected):
    assert as_latex(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "3!=6",
        "2e-3",
        "1.5*e-3",
        "2e",
        "5 sec",
        "log cabin",
        "cost",
        "band",
        r"\text{theta}",
        r"\sin x",
        "0.1234...",
        "0.66...",
        "1, 2, 3, ...",
        r"0.\overline{1}_3",
        "sqrt(2",
        r"\overline{AB}",
        "f(3)",
    ],
)
def test_what_only_looks_typed_stays(text):
    assert as_latex(text) == text


def test_a_period_too_long_for_a_fraction_stays():
    assert as_latex("0." + "12" * 500 + "...") == "0." + "12" * 500 + "..."
