"""Procedural problems: linear equations, with worked dialogues for the base policy.

"7x+16=128" is answered by a guess and its check, "x=17:7*17=119+16=135". The check
contains what a correction needs: 135 is 7 too many, so the guess was 7 / 7 = 1 too high.
A second attempt has one of two forms:

    again     x=17:7*17=119+16=135
    careful   check135-7=128,7/7=1,17-1,x=16:7*16=112+16=128

Problems with a solution below 10 are easy: a very small model can guess it. The others
are hard. Every fourth problem of a data set is easy; in the worked dialogues, from which
the base policy learns, easy and hard problems are equally likely.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from score_jax.data import splits
from score_jax.records import Part, Problem, WorkedDialogue

TASK = "equations"
COEFFICIENTS, SOLUTIONS, OFFSETS = range(2, 10), range(1, 30), range(1, 40)
EASY = 10  # a problem is easy if its solution is below
WORDS = ("check",)  # one token
VOCABULARY = 80


@dataclass(frozen=True)
class Equation:
    """a x + b = c with its solution x."""

    a: int
    x: int
    b: int

    @property
    def c(self) -> int:
        """The right-hand side."""
        return self.reached(self.x)

    @property
    def text(self) -> str:
        """The problem statement."""
        return f"{self.a}x+{self.b}={self.c}"

    def reached(self, guess: int) -> int:
        """The left-hand side for a guess of x."""
        return self.a * guess + self.b

    def check(self, guess: int) -> str:
        """The check of a guess by substitution."""
        return f"{self.a}*{guess}={self.a * guess}+{self.b}={self.reached(guess)}"

    def again(self, guess: int) -> str:
        """An attempt that states a guess and its check."""
        return f"x={guess}:{self.check(guess)}"

    def careful(self, guess: int) -> str:
        """An attempt that derives the solution from the residual of an earlier guess."""
        reached, steps = self.reached(guess), abs(self.x - guess)
        if not steps:
            return f"check{reached}={self.c},{self.again(guess)}"
        sign, rest = ("+" if guess < self.x else "-"), self.a * steps
        work = f"check{reached}{sign}{rest}={self.c},{rest}/{self.a}={steps},{guess}{sign}{steps}"
        return f"{work},{self.again(self.x)}"


def split_of(equation: Equation) -> str:
    """The split of an equation, from a hash of its numbers."""
    return splits.split_of(f"{equation.a},{equation.x},{equation.b}")


@lru_cache(maxsize=3)
def equations(split: str) -> tuple[tuple[Equation, ...], tuple[Equation, ...]]:
    """All easy and all hard equations of a split, in a fixed order.

    Raises:
      ValueError: there is no such split.
    """
    splits.check(split)
    every = (Equation(a, x, b) for a in COEFFICIENTS for x in SOLUTIONS for b in OFFSETS)
    members = [equation for equation in every if split_of(equation) == split]
    return (
        tuple(equation for equation in members if equation.x < EASY),
        tuple(equation for equation in members if equation.x >= EASY),
    )


def problems(task: str, split: str, count: int, seed: int) -> Sequence[Problem]:
    """Distinct problems of a split in seeded order, every fourth an easy one.

    Args:
      task: of each problem; "": none.
      count: number of problems; 0, or more than there are: all hard ones, with a third as
        many easy ones.

    Raises:
      ValueError: there is no such split.
    """
    easy, hard = equations(split)
    rng = np.random.default_rng(seed)
    shuffled = [hard[i] for i in rng.permutation(len(hard))]
    mixed = []
    for n, i in enumerate(rng.permutation(len(easy))[: len(hard) // 3]):
        mixed += [easy[i], *shuffled[3 * n : 3 * n + 3]]
    return [
        Problem(id=equation.text, prompt=equation.text, answer=f"x={equation.x}", task=task)
        for equation in mixed[: count or len(mixed)]
    ]


def sample_texts(instruction: str) -> list[str]:
    """Texts from which the embedded tokenizer is trained; deterministic."""
    return [
        text
        for equation in sum(equations("train"), ())[::20]
        for text in (equation.text, equation.again(7), instruction, equation.careful(7))
    ]


def near_miss(rng: np.random.Generator, x: int) -> int:
    """Draws a wrong guess near the solution: off by 1-3, by 1-12, or by about 10 or 20."""
    while True:
        kind = rng.random()
        if kind < 0.7:
            distance = int(rng.integers(1, 4))
        elif kind < 0.9:
            distance = int(rng.integers(1, 13))
        else:
            distance = 10 * int(rng.integers(1, 3)) + int(rng.integers(-2, 3))
        guess = x + distance if rng.random() < 0.5 else x - distance
        if 0 < guess <= SOLUTIONS[-1] + 5:
            return guess


def dialogues(
    rng: np.random.Generator, count: int, *, careful: float, right: float
) -> list[WorkedDialogue]:
    """Worked examples from which the base policy learns.

    The loss leaves out wrong guesses: they are context for checks and corrections, and the
    policy should not learn to guess wrong.

    Args:
      careful: share of second attempts in the careful form, whatever the first attempt.
      right: share of first attempts that are right, and trained on.
    """
    kinds = equations("train")
    examples = []
    for _ in range(count):
        kind = kinds[int(rng.integers(2))]
        equation = kind[int(rng.integers(len(kind)))]
        solved = rng.random() < right
        guess = equation.x if solved else near_miss(rng, equation.x)
        first = (Part("x="), Part(f"{guess}:", learn=solved), Part(equation.check(guess)))
        second = equation.careful(guess) if rng.random() < careful else equation.again(guess)
        problem = Problem(id=equation.text, prompt=equation.text, answer=f"x={equation.x}")
        examples.append(WorkedDialogue(problem, (first, (Part(second),))))
    return examples
