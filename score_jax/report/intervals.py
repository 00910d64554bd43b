"""95% intervals around rates; the bootstrap resamples problems, not samples.

The samples of one problem are correlated, so a rate is kept as two sums per problem,
such as the number of fixed attempts over the number of wrong first attempts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb, sqrt

import numpy as np
from jaxtyping import Bool, Float

NORMAL_QUANTILE = 1.959963984540054  # of 0.975: two-sided 95%
RESAMPLES_AT_ONCE = 250  # bounds the bootstrap's memory: 250 x 5,000 problems are 10 MB


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A measurement and the 95% interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Rate:
    """A measurement before its interval: sum(part) / sum(whole) over problems."""

    part: Float[np.ndarray, "N"]
    whole: Float[np.ndarray, "N"]
    bounds: tuple[float, float] | None = None  # of one sample's value; None: unbounded
    proportion: bool = False  # every sample counts 0 or 1


def bound(rates: Mapping[str, Rate], *, seed: int, resamples: int = 2000) -> dict[str, Interval]:
    """Computes a 95% interval for each rate; a rate whose wholes sum to 0 is left out.

    Wilson's interval for a proportion with one trial per problem, otherwise percentiles
    of a bootstrap over problems.
    """
    defined = {name: rate for name, rate in rates.items() if rate.whole.sum() > 0}
    percentiles = _bootstrap(list(defined.values()), seed=seed, resamples=resamples)
    bounded = {}
    for (name, rate), low, high in zip(defined.items(), *percentiles, strict=True):
        if rate.proportion and rate.whole.max() <= 1:
            bounded[name] = wilson(rate.part.sum(), rate.whole.sum())
        else:
            used = rate.whole > 0
            value = float(rate.part.sum() / rate.whole.sum())
            bounded[name] = _widen(
                value, float(low), float(high), rate.part[used] / rate.whole[used], rate.bounds
            )
    return bounded


def wilson(successes: float, trials: float) -> Interval:
    """Wilson's 95% score interval of a proportion of independent trials.

    Source: Wilson, JASA 22 (1927), 209-212; doi:10.1080/01621459.1927.10502953.
    """
    share, z2 = successes / trials, NORMAL_QUANTILE**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = NORMAL_QUANTILE * sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    spread /= 1 + z2 / trials
    low = max(0.0, centre - spread) if successes > 0 else 0.0
    high = min(1.0, centre + spread) if successes < trials else 1.0
    return Interval(value=float(share), low=float(low), high=float(high))


def _bootstrap(
    rates: Sequence[Rate], *, seed: int, resamples: int
) -> tuple[Float[np.ndarray, "M"], Float[np.ndarray, "M"]]:
    """Percentiles of the rates over problems drawn with replacement, the same for all rates."""
    parts = np.stack([rate.part for rate in rates], axis=1)
    wholes = np.stack([rate.whole for rate in rates], axis=1)
    problems, random = len(parts), np.random.default_rng(seed)
    values = np.full((resamples, len(rates)), np.nan)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, resamples - start)
        drawn = random.integers(problems, size=(size, problems))
        drawn += np.arange(size)[:, None] * problems
        times = np.bincount(drawn.ravel(), minlength=size * problems).reshape(size, problems)
        whole = times @ wholes
        rows = values[start : start + size]
        np.divide(times @ parts, whole, out=rows, where=whole > 0)
    low, high = np.nanquantile(values, (0.025, 0.975), axis=0)
    return low, high


def _widen(
    value: float,
    low: float,
    high: float,
    values: Float[np.ndarray, "... N"],
    bounds: tuple[float, float] | None,
) -> Interval:
    """Builds an interval from its bootstrap bounds.

    Where all problems have the same value, the bootstrap interval has no width. The bounds
    are then those of a sample in which the largest share of problems that Wilson's interval
    allows for zero observed cases lies at an extreme of the range.

    Args:
      values: of each problem.
      bounds: that no value can be beyond; None: unbounded, and never widened.
    """
    if bounds is not None and np.ptp(values) == 0:
        unseen = wilson(0, values.shape[-1]).high
        low = value - unseen * (value - bounds[0])
        high = value + unseen * (bounds[1] - value)
    return Interval(value=value, low=min(low, value), high=max(high, value))


@cache
def _shares(count: int, *, seed: int, resamples: int, what: str) -> Float[np.ndarray, "M N"]:
    """How much of each resample each of `count` things is; drawn once, since it takes a while.

    Args:
      what: is drawn: things of other kinds are drawn independently.
    """
    random = np.random.default_rng([seed, *what.encode()])
    return random.multinomial(count, np.full(count, 1 / count), size=resamples) / count


def mean_over_runs(
    values: Float[np.ndarray, "S N"],
    *,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """The mean over runs and problems, with a 95% interval for other runs on other problems.

    Bootstrap of both: runs and problems are drawn with replacement, the same problems for
    all runs. With few runs the interval is too narrow; with one run only problems vary.

    Args:
      values: one per run and problem.
      bounds: of a value; with them agreement of all runs on all problems is not certainty.

    Source: Owen, Annals of Applied Statistics 1 (2007), 386-411; doi:10.1214/07-AOAS122.
    """
    runs, problems = values.shape
    drawn_runs = _shares(runs, seed=seed, resamples=resamples, what="runs")
    drawn_problems = _shares(problems, seed=seed, resamples=resamples, what="problems")
    means = np.einsum("mn,mn->m", drawn_runs @ values, drawn_problems)
    low, high = np.quantile(means, (0.025, 0.975))
    return _widen(float(values.mean()), float(low), float(high), values, bounds)


def paired_difference(
    a: Float[np.ndarray, "S N"],
    b: Float[np.ndarray, "S2 N"],
    *,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """The mean of one method minus that of another on the same problems, with a 95% interval.

    Bootstrap as in `mean_over_runs`: the same problems are drawn for both methods, so that what
    makes a problem hard cancels; runs are drawn for each method by itself, where it has several.

    Args:
      a, b: a value for each run and problem; column n of both is the same problem.
      bounds: of a difference; with them agreement on all problems is not certainty.

    Raises:
      ValueError: they have different numbers of problems.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"a has {a.shape[1]} problems and b {b.shape[1]}; give both methods the same ones"
        )
    problems = _shares(a.shape[1], seed=seed, resamples=resamples, what="problems")
    drawn = [
        np.einsum(
            "mn,mn->m", _shares(len(x), seed=seed, resamples=resamples, what=what) @ x, problems
        )
        for x, what in ((a, "runs"), (b, "other runs"))
    ]
    low, high = np.quantile(drawn[0] - drawn[1], (0.025, 0.975))
    apart = np.subtract(a[:, None], b[None], dtype=float)
    return _widen(float(a.mean() - b.mean()), float(low), float(high), apart, bounds)


def mcnemar(a: Bool[np.ndarray, "N"], b: Bool[np.ndarray, "N"]) -> float:
    """The two-sided p-value that two runs are right equally often, of the problems they differ on.

    Exact: under the hypothesis each of those problems is a fair coin.

    Source: McNemar, Psychometrika 12 (1947), 153-157; doi:10.1007/BF02295996.
    """
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    trials, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(comb(trials, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**trials)
