from fractions import Fraction

import pytest

from score_jax.records import Problem
from score_jax.rewards import numeric


@pytest.mark.parametrize(
    ("text", "value", "percent", "unit"),
    [
        ("5", 5, False, ""),
        ("-1,234.50", Fraction(-2469, 2), False, ""),
        (r"\frac{3}{4}", Fraction(3, 4), False, ""),
        (r"-\dfrac{3}{4}", Fraction(-3, 4), False, ""),
        (r"1\frac{1}{2}", Fraction(3, 2), False, ""),
        ("1 1/2", Fraction(3, 2), False, ""),
        ("3/4", Fraction(3, 4), False, ""),
        ("12.5%", Fraction(25, 2), True, ""),
        (r"12.5\%", Fraction(25, 2), True, ""),
        ("$3.2 million", 3_200_000, False, ""),
        ("€ 5bn", 5_000_000_000, False, ""),
        ("(1,234)", -1234, False, ""),
        ("$(1,234)", -1234, False, ""),
        ("2.5e3", 2500, False, ""),
        (r"2.5 \times 10^{-3}", Fraction(1, 400), False, ""),
        ("5 cm", 5, False, "cm"),
        ("5 Dollars", 5, False, "dollar"),
        (r"5\text{ cm}^2", 5, False, "cm^2"),
        (r"30^\circ", 30, False, "degree"),
        ("−4", -4, False, ""),
        (".5", Fraction(1, 2), False, ""),
    ],
)
def test_numbers_are_read_exactly(text, value, percent, unit):
    quantity = numeric.parse(text)
    assert quantity == numeric.Quantity(value=Fraction(value), percent=percent, unit=unit)


@pytest.mark.parametrize(
    "text",
    ["", "x", "3x+1", "1,23", "1,2,3", "1/0", "--1", "5 + 5", "1e999", "9" * 100, "(1,2)", "١٢x("],
)
def test_what_is_no_number_is_not_read(text):
    assert numeric.parse(text) is None


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("100", "100.005", "correct"),
        ("100", "100.02", "wrong"),
        ("0", "0.0001", "wrong"),
        ("12.5 +- 0.1", "12.58", "correct"),
        ("12.5 +- 0.1", "12.65", "wrong"),
        ("200 +- 2%", "203", "correct"),
        ("200 ± 2%", "205", "wrong"),
        ("12%", "0.12", "correct"),
        ("12%", "12", "correct"),
        ("12", "12%", "correct"),
        ("0.12", "12%", "correct"),
        ("5 km", "5 miles", "wrong"),
        ("5 km", "5", "correct"),
        ("$1.2 billion", "1,200 million", "correct"),
        ("-1234", "(1,234)", "correct"),
        ("5", "about five", "unparsable"),
    ],
)
def test_tolerance_units_and_percent(gold, answer, verdict):
    problem = Problem(id="1", prompt="", answer=gold)
    assert numeric.grade(problem, f"Final Answer: {answer}").verdict == verdict


def test_a_gold_answer_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="'many' is not a number"):
        numeric.grade(Problem(id="1", prompt="", answer="many"), "Final Answer: 5")
    with pytest.raises(ValueError, match="tolerance"):
        numeric.grade(Problem(id="1", prompt="", answer="5 +- x"), "Final Answer: 5")
