"""Weighted mixtures of data sets, and a filter by difficulty."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from score_jax.data.lazy import Lazy
from score_jax.records import Problem


def mix(parts: Sequence[Sequence[Problem]], weights: Sequence[float], *, seed: int) -> Lazy:
    """Combines several data sets into one sequence, each with its share of the indices.

    The sequence contains every problem of every part at least once; a part that is small
    for its weight is repeated, each time in another order. Indices are computed, so that
    nothing is copied and access is random. A problem's id is prefixed with the number of
    its part and of the repetition, "1.0/gsm8k/7", so that ids are unique.

    Args:
      parts: the data sets.
      weights: one for each; they need not sum to 1.
      seed: of the orders within the parts.

    Raises:
      ValueError: a part is empty, or a weight is not positive and finite.
    """
    if not parts or len(parts) != len(weights):
        raise ValueError(f"data.parts has {len(parts)} parts and {len(weights)} weights")
    for number, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        if not len(part):
            raise ValueError(f"data.parts[{number}] holds no problems")
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"data.parts[{number}].weight is {weight}; set one above 0")
    passes = max(len(part) / weight for part, weight in zip(parts, weights, strict=True))
    counts = [max(len(p), round(passes * w)) for p, w in zip(parts, weights, strict=True)]
    starts = np.concatenate([[0], np.cumsum(counts)])

    @lru_cache(maxsize=64)
    def order(number: int, repetition: int) -> np.ndarray:
        return np.random.default_rng([seed, number, repetition]).permutation(len(parts[number]))

    def read(index: int) -> Problem:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        repetition, rest = divmod(index - int(starts[number]), len(parts[number]))
        problem = parts[number][int(order(number, repetition)[rest])]
        return replace(problem, id=f"{number}.{repetition}/{problem.id}")

    return Lazy(int(starts[-1]), read)


def keep_by_pass_rate(
    problems: Sequence[Problem], rates: Mapping[str, object], *, lowest: float, highest: float
) -> list[Problem]:
    """Keeps the problems whose pass rate under the base policy is in a range.

    Args:
      rates: share of right answers by problem id, 0..1.
      lowest: smallest rate kept.
      highest: largest rate kept.

    Raises:
      ValueError: a problem has no rate, or none is left.
    """
    if not 0 <= lowest <= highest <= 1:
        raise ValueError(f"data.pass_rate_range is {lowest}, {highest}; set 0 <= low <= high <= 1")
    kept = []
    for problem in problems:
        rate = rates.get(problem.id)
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
            raise ValueError(f"data.pass_rates gives problem {problem.id!r} the rate {rate!r}")
        if lowest <= rate <= highest:
            kept.append(problem)
    if not kept:
        raise ValueError(
            f"no problem has a pass rate in {lowest}..{highest}; widen data.pass_rate_range"
        )
    return kept
