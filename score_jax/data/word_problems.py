"""Procedural word problems: arithmetic of one or two steps with small numbers.

A language model of 135 million parameters sometimes solves "Ben has 7 shells and finds 5
more. How many shells does Ben have now?". The splits share no text.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from score_jax.data.lazy import Lazy
from score_jax.records import Problem

TASK = "words"
COUNT = 10_000  # default number of problems
NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas")
THINGS = ("apples", "books", "coins", "shells", "pencils", "stamps", "cards", "marbles")
SPLITS = {"train": (0, 70), "validation": (70, 80), "test": (80, 100)}  # percent of all texts


def problems(split: str, count: int, seed: int) -> Sequence[Problem]:
    """A split's problems, generated on access; the same text may occur twice.

    Args:
      split: train, validation or test.
      count: number of problems; 0: COUNT.
      seed: of the problems drawn.

    Raises:
      ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"data.split is {split!r}; choose one of {', '.join(SPLITS)}")

    def read(index: int) -> Problem:
        rng = np.random.default_rng((seed, index))
        while True:
            text, answer = draw(rng)
            if split_of(text) == split:
                identifier = f"words/{split}/{seed}/{index}"
                return Problem(id=identifier, prompt=text, answer=str(answer), task=TASK)

    return Lazy(count or COUNT, read)


def split_of(text: str) -> str:
    """The split of a problem, from a hash of its text."""
    percentile = zlib.crc32(text.encode()) % 100
    return next(name for name, (low, high) in SPLITS.items() if low <= percentile < high)


def draw(rng: np.random.Generator) -> tuple[str, int]:
    """Draws a problem and its answer, which is never negative."""
    name, other = (NAMES[i] for i in rng.choice(len(NAMES), 2, replace=False))
    thing = THINGS[rng.integers(len(THINGS))]
    a, b, c = (int(i) for i in rng.integers(2, 10, 3))
    question = f"How many {thing} does {name} have now?"
    gift = int(rng.integers(1, a + b))  # at least one is left
    kinds = (
        (f"{name} has {a} {thing} and gets {b} more from {other}. {question}", a + b),
        (f"{name} has {a + b} {thing} and gives {b} to {other}. {question}", a),
        (f"{name} buys {a} boxes with {b} {thing} in each. {question}", a * b),
        (f"{name} has {a} {thing}, finds {b} more and gives {gift} to {other}. {question}",
         a + b - gift),
        (f"{name} buys {a} boxes with {b} {thing} in each and finds {c} more. {question}",
         a * b + c),
    )  # fmt: skip
    return kinds[rng.integers(len(kinds))]
