from fractions import Fraction

import pytest

from score_jax.records import Problem
from score_jax.tasks.grading import quantities


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
    quantity = quantities.parse(text)
    assert quantity == quantities.Quantity(value=Fraction(value), percent=percent, unit=unit)


@pytest.mark.parametrize(
    "text",
    ["", "x", "3x+1", "1,23", "1,2,3", "1/0", "--1", "5 + 5", "1e999", "9" * 100, "(1,2)", "١٢x("],
)
def test_what_is_no_number_is_not_read(text):
    assert quantities.parse(text) is None


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
    assert quantities.grade(problem, f"Final Answer: {answer}").verdict == verdict


MAGNITUDES = (  # the gold answer, what equals it, what does not
    ("1.5 million", "$1.5M", "$1.5B"),
    ("1.5 million", "1,500,000", "1.5"),
    ("1.5 million", "1 500 000", "1 500"),
    ("1.5 million", "1500 thousand", "1500"),
    ("1.5 million", "1.5M", "1.5k"),
    ("1.5 million", "1.5 million dollars", "1.5 billion dollars"),
    ("1.5 million", "USD 1.5m", "1.5 m"),
    ("1.5 million", "$1.5mn", "$1.5bn"),
    ("1.5 million", "$1.5MM", "$1.5"),
    ("1.5 million", "1.5M€", "1.5B€"),
    ("1.5 million", "US$1.5 mil", "US$1.5 tn"),
    ("1.5 million", "1.5 millions", "15 millions"),
    ("1.5 million", "15 lakh", "1.5 crore"),
    ("₹2 crore", "Rs. 2 cr", "Rs. 2"),
    ("-$1.5 million", "($1.5M)", "$1.5M"),
    ("-1,234", "(1,234)", "1,234"),
    ("1.5 billion", "$1.5B", "$1.5M"),
    ("1.5 billion", "1500M", "1500"),
    ("1.5 billion", "1.5B", "1.5T"),
    ("2 trillion", "€2T", "€2B"),
    ("$5K", "5 thousand", "5"),
    ("5000", "5k", "5"),
    ("1.5", "1.5 kg", "$1.5B"),
    ("1.5", "$1.5", "1.5M"),
    ("1.5", "1.5 m", "1.5 million"),  # metres
    ("1.5 m", "1.5", "1.5M"),
    ("300 K", "300", "$300M"),  # kelvin, or thousands
    ("300 K", "300K", "301 K"),
    ("0.5 M", "0.5", "0.5 billion dollars"),  # molar, or millions
    ("5 cm", "5", "5 mm"),
    ("12‰", "1.2%", "12%"),
    ("12‰", "0.012", "0.12"),
    ("12 per 1,000", "12‰", "12 per 100"),
    ("12 per thousand", "12", "1.2"),
    ("50 bps", "0.5%", "50%"),
    ("50 basis points", "0.005", "5"),
    ("12%", "12 per cent", "1.2%"),
    ("12%", "12% of sales", "0.0012"),
    ("1.5", "1½", "11/2"),
    ("15", "x = 15", "x = 16"),
    ("-15", "–15", "15"),
)


@pytest.mark.parametrize(("gold", "equal", "different"), MAGNITUDES)
def test_magnitudes_are_read_from_words_and_letters(gold, equal, different):
    problem = Problem(id="1", prompt="", answer=gold)
    found = [quantities.grade(problem, f"Final Answer: {a}").verdict for a in (equal, different)]
    assert found == ["correct", "wrong"]
    swapped = Problem(id="1", prompt="", answer=equal.removeprefix("x = "))
    assert quantities.grade(swapped, f"Final Answer: {gold}").verdict == "correct"


def test_letters_behind_a_number_are_no_scale_to_mathematics():
    """There 3k and 3M are three times a variable."""
    for text, unit in (("3k", "k"), ("3M", "M"), ("3B", "B"), ("3T", "T")):
        quantity = quantities.parse(text)
        assert quantity is not None and (quantity.value, quantity.unit) == (3, unit)


def test_a_gold_answer_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="'many' is not a number"):
        quantities.grade(Problem(id="1", prompt="", answer="many"), "Final Answer: 5")
    with pytest.raises(ValueError, match="tolerance"):
        quantities.grade(Problem(id="1", prompt="", answer="5 +- x"), "Final Answer: 5")
