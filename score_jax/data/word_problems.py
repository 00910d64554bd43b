"""Arithmetic in words, made by rule: one or two steps with small numbers.

"Ben has 7 shells and finds 5 more. How many shells does Ben have now?" is within reach
of a language model of 135 million parameters, some of the time. The splits share no text.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from score_jax.data.lazy import Lazy
from score_jax.records import Problem

TASK = "words"
COUNT = 10_000  # problems when no number is asked for
NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas")
THINGS = ("apples", "books", "coins", "shells", "pencils", "stamps", "cards", "marbles")
SPLITS = {"train": (0, 70), "validation": (70, 80), "test": (80, 100)}  # percent of all texts


def problems(split: str, count: int, seed: int) -> Sequence[Problem]:
    """A split's problems, each made when it is asked for; one may come twice.

    Args:
      split: train, validation or test.
      count: how many; 0: COUNT.
      seed: another one gives another order.

    Raises:
      ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"data.split is {split!r}; choose one of {', '.join(SPLITS)}")

    def read(place: int) -> Problem:
        rng = np.random.default_rng((seed, place))
        while True:
            text, answer = tell(rng)
            if split_of(text) == split:
                identifier = f"words/{split}/{seed}/{place}"
                return Problem(id=identifier, prompt=text, answer=str(answer), task=TASK)

    return Lazy(count or COUNT, read)


def split_of(text: str) -> str:
    """The split that a problem belongs to."""
    place = zlib.crc32(text.encode()) % 100
    return next(name for name, (low, high) in SPLITS.items() if low <= place < high)


def tell(rng: np.random.Generator) -> tuple[str, int]:
    """A problem and its answer, which is never negative."""
    name, other = (NAMES[i] for i in rng.choice(len(NAMES), 2, replace=False))
    thing = THINGS[rng.integers(len(THINGS))]
    a, b, c = (int(i) for i in rng.integers(2, 10, 3))
    asked = f"How many {thing} does {name} have now?"
    gift = int(rng.integers(1, a + b))  # never all
    kinds = (
        (f"{name} has {a} {thing} and gets {b} more from {other}. {asked}", a + b),
        (f"{name} has {a + b} {thing} and gives {b} to {other}. {asked}", a),
        (f"{name} buys {a} boxes with {b} {thing} in each. {asked}", a * b),
        (f"{name} has {a} {thing}, finds {b} more and gives {gift} to {other}. {asked}",
         a + b - gift),
        (f"{name} buys {a} boxes with {b} {thing} in each and finds {c} more. {asked}", a * b + c),
    )  # fmt: skip
    return kinds[rng.integers(len(kinds))]
