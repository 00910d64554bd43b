"""Equations: apart by split, and true in every worked line."""

import re
import zlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from score_jax.data import equations
from score_jax.data.equations import Equation
from score_jax.records import Part

COUNTS = {"train": (1_979, 4_401), "validation": (258, 628), "test": (571, 1_211)}
EVERY = [Equation(a, x, b) for a in range(2, 10) for x in range(1, 30) for b in range(1, 40)]


def holds(line):
    """Whether every equality of an attempt holds, read from left to right.

    Each of "119+16=135" and "7*17=119+16=135" is a chain: the value of the part before
    an equals sign must be that of the first number behind it.
    """
    for claim in re.split(r"[,:]|check", line):
        if claim.startswith("x=") or "=" not in claim:
            continue
        sides = claim.split("=")
        for left, right in pairwise(sides):
            a, operator, b = re.fullmatch(r"(\d+)(?:([-+*/])(\d+))?", left).groups()
            value = int(a)
            if operator:
                other = int(b)
                value = {
                    "+": value + other,
                    "-": value - other,
                    "*": value * other,
                    "/": value / other,
                }[operator]
            if value != int(re.match(r"\d+", right).group()):
                return False
    return True


def test_the_parser_of_this_test_sees_errors():
    assert holds("x=17:7*17=119+16=135")
    assert holds("check135-7=128,7/7=1,17-1,x=16:7*16=112+16=128")
    for wrong in (
        "x=17:7*17=118+16=135",
        "x=17:7*17=119+16=134",
        "check135-7=127,7/7=1,17-1,x=16:7*16=112+16=128",
        "check135-7=128,7/7=2,17-1,x=16:7*16=112+16=128",
    ):
        assert not holds(wrong)


def test_a_careful_attempt_is_spelt_out_as_documented():
    equation = Equation(7, 16, 16)
    assert equation.text == "7x+16=128"
    assert equation.again(17) == "x=17:7*17=119+16=135"
    assert equation.careful(17) == "check135-7=128,7/7=1,17-1,x=16:7*16=112+16=128"
    assert equation.careful(14) == "check114+14=128,14/7=2,14+2,x=16:7*16=112+16=128"
    assert equation.careful(16) == "check128=128,x=16:7*16=112+16=128"


def test_every_worked_line_is_true_for_every_equation_and_guess():
    """And a careful one ends at the solution, by the step that it names."""
    for place, equation in enumerate(EVERY):
        for guess in {1 + place % 34, max(1, equation.x - 1)}:
            assert holds(equation.again(guess))
            line = equation.careful(guess)
            assert holds(line), line
            assert f"x={equation.x}:" in line
            if guess != equation.x:
                start, sign, step = re.search(r",(\d+)([-+])(\d+),x=", line).groups()
                assert int(start) == guess
                assert int(start) + int(sign + step) == equation.x


def test_splits_are_disjoint_whole_and_pinned():
    """Changing these counts changes what is held out: results are no longer comparable."""
    own = {split: equations.equations(split) for split in COUNTS}
    assert {split: (len(easy), len(hard)) for split, (easy, hard) in own.items()} == COUNTS
    together = [equation for easy, hard in own.values() for equation in easy + hard]
    assert sorted(map(str, together)) == sorted(map(str, EVERY))
    assert all(e.x < 10 for easy, _ in own.values() for e in easy)
    assert all(e.x >= 10 for _, hard in own.values() for e in hard)


def test_a_split_depends_on_the_numbers_of_the_equation_alone():
    for equation in EVERY[::97]:
        place = zlib.crc32(f"{equation.a},{equation.x},{equation.b}".encode()) % 100
        expected = "train" if place < 70 else "validation" if place < 80 else "test"
        assert equations.split_of(equation) == expected


def test_problems_are_distinct_a_quarter_easy_and_in_seeded_order():
    problems = equations.problems("equations", "test", 0, 0)
    assert len({problem.id for problem in problems}) == len(problems) == 1_211 // 3 * 4
    solutions = [int(problem.answer.removeprefix("x=")) for problem in problems]
    assert all((x < 10) == (place % 4 == 0) for place, x in enumerate(solutions))
    assert equations.problems("equations", "test", 10, 0) == problems[:10]
    assert equations.problems("equations", "test", 10, 1) != problems[:10]


@pytest.mark.parametrize("x", [1, 2, 9, 16, 29])
def test_near_misses_are_wrong_and_in_range(x):
    rng = np.random.default_rng(x)
    misses = Counter(equations.near_miss(rng, x) for _ in range(3000))
    assert x not in misses
    assert min(misses) >= 1 and max(misses) <= 34
    near = sum(count for miss, count in misses.items() if abs(miss - x) <= 3)
    assert near > 1800


def drawn(careful, right, count=400):
    return equations.dialogues(np.random.default_rng(0), count, careful=careful, right=right)


def test_wrong_guesses_are_never_learnt_and_their_checks_are():
    solutions = {equation.text: equation.x for equation in EVERY}
    kinds = Counter()
    for dialogue in drawn(careful=0.5, right=0.5):
        (start, guess, check), (second,) = dialogue.attempts
        stated = int(guess.text.removesuffix(":"))
        assert start == Part("x=") and check.learn and second.learn
        assert guess.learn == (stated == solutions[dialogue.problem.prompt])
        assert holds("x=" + guess.text + check.text) and holds(second.text)
        kinds[guess.learn, second.text.startswith("check")] += 1
    assert len(kinds) == 4 and min(kinds.values()) > 60  # the draws do not depend on each other


def test_shares_of_0_and_1_are_kept_to_the_letter():
    assert all(d.attempts[0][1].learn for d in drawn(careful=0, right=1))
    assert not any(d.attempts[0][1].learn for d in drawn(careful=0, right=0))
    assert all(d.attempts[1][0].text.startswith("check") for d in drawn(careful=1, right=0))
    again = drawn(careful=0, right=0)
    assert all("".join(p.text for p in d.attempts[0]) == d.attempts[1][0].text for d in again)


def test_worked_dialogues_are_drawn_from_the_training_split_alone():
    train = {equation.text for kind in equations.equations("train") for equation in kind}
    assert {dialogue.problem.prompt for dialogue in drawn(careful=0.5, right=0.5)} <= train


def test_the_tokenizers_texts_are_always_the_same():
    texts = equations.sample_texts("Again.")
    assert texts == equations.sample_texts("Again.")
    assert set("0123456789x=+-*/:,") <= set("".join(texts))
