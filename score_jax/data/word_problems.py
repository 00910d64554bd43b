"""Procedural word problems: arithmetic of one or two steps with small numbers.

A language model of 135 million parameters sometimes solves "Ben has 7 shells and finds 5
more. How many shells does Ben have now?". The splits share no text.
"""

from collections.abc import Sequence

import numpy as np

from score_jax.data import splits
from score_jax.data.lazy import Lazy
from score_jax.records import Problem

TASK = "words"
COUNT = 10_000  # default number of problems
NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas")
THINGS = ("apples", "books", "coins", "shells", "pencils", "stamps", "cards", "marbles")
SPLITS = splits.SPLITS


def problems(split: str, count: int, seed: int) -> Sequence[Problem]:
    """A split's problems, generated on access; the same text may occur twice.

    Args:
      split: train, validation or test.
      count: number of problems; 0: COUNT.
      seed: of the problems drawn.

    Raises:
      ValueError: there is no such split.
    """
    splits.check(split)

    def read(index: int) -> Problem:
        rng = np.random.default_rng((seed, index))
        while True:
            text, answer = draw(rng)
            if splits.split_of(text) == split:
                identifier = f"words/{split}/{seed}/{index}"
                return Problem(id=identifier, prompt=text, answer=str(answer), task=TASK)

    return Lazy(count or COUNT, read)


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
