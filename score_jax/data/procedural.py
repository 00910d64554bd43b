"""Problems made by rule: linear equations modulo 23, checked by substitution.

"7x+9=4 (mod 23)" is answered by a guess and its check, "x=5:7*5=12,12+9=21". The check
is what a careful reader can use: 21 should have been 4, so the guess must grow by
(4 - 21) / 7 = 6 / 7 = 14, to 19. A second attempt is written in one of two ways:

    again     x=5:7*5=12,12+9=21
    careful   4-21=6,6/7=14,5+14=19,x=19:7*19=18,18+9=4

Every number is one token, every step of the work one fact of a 23 x 23 table, so a
very small model can do each step; solving in one go takes two of them at once.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from score_jax.records import Problem

MODULUS = 23
SPLITS = {"train": (0, 70), "validation": (70, 80), "test": (80, 100)}  # percent of all problems
TASK = "equations"
WORDS = (*(str(number) for number in range(10, MODULUS)), f" (mod {MODULUS})")  # one token each
VOCABULARY = 96


@dataclass(frozen=True)
class Equation:
    """a x + b = c modulo 23, with a not 0."""

    a: int
    b: int
    c: int

    @property
    def text(self) -> str:
        """The problem as it is asked."""
        return f"{self.a}x+{self.b}={self.c} (mod {MODULUS})"

    @property
    def solution(self) -> int:
        """The x that solves it."""
        return (self.c - self.b) * pow(self.a, -1, MODULUS) % MODULUS

    def check(self, x: int) -> str:
        """What is written behind a guess."""
        product = self.a * x % MODULUS
        return f"{self.a}*{x}={product},{product}+{self.b}={(product + self.b) % MODULUS}"

    def again(self, x: int) -> str:
        """An attempt that states a guess and its check."""
        return f"x={x}:{self.check(x)}"

    def careful(self, x: int) -> str:
        """An attempt that works from what the check of an earlier guess has left over."""
        reached = (self.a * x + self.b) % MODULUS
        rest = (self.c - reached) % MODULUS
        step = rest * pow(self.a, -1, MODULUS) % MODULUS
        new = (x + step) % MODULUS
        work = f"{self.c}-{reached}={rest},{rest}/{self.a}={step},{x}+{step}={new}"
        return f"{work},{self.again(new)}"


def split_of(equation: Equation) -> str:
    """The split that an equation belongs to, from a hash of its text."""
    place = zlib.crc32(equation.text.encode()) % 100
    return next(name for name, (low, high) in SPLITS.items() if low <= place < high)


@lru_cache(maxsize=3)
def equations(split: str) -> tuple[Equation, ...]:
    """All equations of a split, in a fixed order.

    Raises:
      ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"data.split is {split!r}; choose one of {', '.join(SPLITS)}")
    numbers = range(MODULUS)
    every = (Equation(a, b, c) for a in range(1, MODULUS) for b in numbers for c in numbers)
    return tuple(equation for equation in every if split_of(equation) == split)


def problems(task: str, split: str, count: int, seed: int) -> Sequence[Problem]:
    """Problems of a split in seeded order.

    Args:
      task: only "equations" is made by rule.
      count: how many; 0 or more than there are: all.

    Raises:
      ValueError: another task, or no such split.
    """
    if task != TASK:
        raise ValueError(f"data.task is {task!r}; only {TASK!r} is procedural")
    every = equations(split)
    order = np.random.default_rng(seed).permutation(len(every))
    chosen = [every[i] for i in order[: count or len(every)]]
    return [
        Problem(id=equation.text, prompt=equation.text, answer=f"x={equation.solution}", task=task)
        for equation in chosen
    ]


def sample_texts() -> list[str]:
    """Texts from which the embedded tokenizer is trained; always the same."""
    chosen = equations("train")[::50]
    return [
        text
        for equation in chosen
        for text in (equation.text, equation.again(7), equation.careful(7))
    ]


@dataclass(frozen=True)
class Part:
    """A piece of an attempt, and whether its tokens are learnt."""

    text: str
    learn: bool = True


@dataclass(frozen=True)
class Dialogue:
    """A worked example for supervised training; an attempt is a tuple of parts."""

    prompt: str
    attempts: tuple[tuple[Part, ...], ...]


def dialogues(
    rng: np.random.Generator,
    count: int,
    *,
    careful: float,
    practised: int,
    right: float = 0.6,
) -> list[Dialogue]:
    """Worked examples from which the base policy learns.

    Solving in one go is practised for small coefficients only, so the model is sure of
    some problems and at a loss with others; checking and careful correction are
    practised for all. Guesses that are not learnt stand there as what the model has
    to react to: it is never trained to guess wrong.

    Args:
      careful: share of second attempts that are careful ones, whatever the first was.
      practised: largest coefficient of which solving in one go is practised.
      right: share of first attempts that are right.
    """
    pool = equations("train")
    out = []
    for _ in range(count):
        equation = pool[int(rng.integers(len(pool)))]
        solved = rng.random() < right
        guess = int(rng.integers(MODULUS))
        if solved or guess == equation.solution:
            guess = equation.solution
        learn = guess == equation.solution and equation.a <= practised
        first = (Part(f"x={guess}", learn), Part(f":{equation.check(guess)}"))
        second = equation.careful(guess) if rng.random() < careful else equation.again(guess)
        out.append(Dialogue(equation.text, (first, (Part(second),))))
    return out
