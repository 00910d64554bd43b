"""Procedural problems: the difference of two whole numbers of as many digits.

A small language model that has learnt the form gets a share of them right that falls with the
digits; BY571/SCoRe trains Qwen3-0.6B on five. The splits share no problem.
"""

from collections.abc import Sequence

import numpy as np

from score_jax.checks import Count, unmet
from score_jax.data import splits
from score_jax.data.lazy import Lazy
from score_jax.records import Problem

TASK = "subtraction"
COUNT = 10_000  # default number of problems
MOST_DIGITS = 18  # that an int64 holds


def problems(split: str, count: int, seed: int, digits: int) -> Sequence[Problem]:
    """A split's problems, generated on access; the same one may occur twice.

    Args:
      split: train, validation or test.
      count: number of problems; 0: COUNT.
      seed: of the problems drawn.
      digits: of both numbers; the first is the larger one.

    Raises:
      ValueError: there is no such split, or no number has so many digits.
    """
    splits.check(split)
    if unmet(Count, digits) or digits > MOST_DIGITS:
        raise ValueError(
            f"data.digits is {digits!r}; set a whole number from 1 to {MOST_DIGITS}: both numbers "
            "of data.source 'subtraction' have as many digits"
        )
    low, high = 10 ** (digits - 1), 10**digits

    def read(index: int) -> Problem:
        rng = np.random.default_rng((seed, index))
        while True:
            smaller, larger = sorted(rng.integers(low, high, 2).tolist())
            text = f"{larger} - {smaller} ="
            if splits.split_of(text) == split:
                identifier = f"subtraction/{digits}/{split}/{seed}/{index}"
                answer = str(larger - smaller)
                return Problem(id=identifier, prompt=text, answer=answer, task=TASK)

    return Lazy(count or COUNT, read)
