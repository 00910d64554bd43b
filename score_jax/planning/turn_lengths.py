"""Lengths to measure and plan with: those that models write, whatever the weights say.

Turns of real models have lengths with a long tail, far below their limit on average. A list of
such lengths, drawn once, makes the work of random weights realistic and equal in every run.
"""

from collections.abc import Sequence

import numpy as np

from score_jax.records import Problem
from score_jax.rl.dialogue import Encoder, TooLong
from score_jax.stages.settings import Settings

SHARE = 0.35  # mean length of a turn, as a share of its limit
SPREAD = 0.8  # standard deviation of the logarithm


def realistic_lengths(rows: int, limits: tuple[int, ...], *, seed: int = 0) -> np.ndarray:
    """Turn lengths i32[B R], lognormal, from 1 to the turn's limit.

    Cutting at the limit lowers the mean, so the scale is searched with which that of the cut
    lengths is SHARE of the limit, as near as whole tokens allow.
    """
    normal = np.random.default_rng(seed).standard_normal((rows, len(limits)))
    columns = []
    for turn, limit in enumerate(limits):
        low, high = 0.0, float(limit)
        for _ in range(60):
            scale = (low + high) / 2
            lengths = np.clip(np.rint(scale * np.exp(SPREAD * normal[:, turn])), 1, limit)
            low, high = (scale, high) if lengths.mean() < SHARE * limit else (low, scale)
        columns.append(lengths)
    return np.stack(columns, axis=1).astype(np.int32)


def fitting(encoder: Encoder, problems: Sequence[Problem], count: int) -> list[Problem]:
    """The first problems that fit the prompt limit, again from the first if there are too few.

    Raises:
      ValueError: there is none.
    """
    found: list[Problem] = []
    for problem in problems:
        try:
            encoder.opening(problem)
        except TooLong:
            continue
        found.append(problem)
        if len(found) == count:
            break
    if not found:
        raise ValueError(
            f"config.sampling.prompt_limit is {encoder.prompt_limit}; no training problem fits: "
            "raise it"
        )
    return [found[index % len(found)] for index in range(count)]


def given_lengths(settings: Settings) -> np.ndarray:
    """Lengths of every turn of every dialogue, i32[P G R]."""
    problems, group_size = settings.batch, settings.sampling.group_size
    lengths = realistic_lengths(problems * group_size, settings.plan.limits)
    return lengths.reshape(problems, group_size, -1)
