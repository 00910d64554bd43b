"""Problems made by rule, disjoint between train, validation and test."""

import zlib
from collections.abc import Sequence

import numpy as np

from score_jax.records import Problem

LARGEST_SOLUTION = 99
LARGEST_OFFSET = 99


def problems(task: str, split: str, count: int, seed: int) -> Sequence[Problem]:
    """Random equations a x + b = c of one split."""
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    out: list[Problem] = []
    seen: set[str] = set()
    while len(out) < count:
        a, x, b = (int(rng.integers(*r)) for r in ((2, 10), (1, 100), (1, 100)))
        text = f"{a}x+{b}={a * x + b}"
        if text in seen:
            continue
        seen.add(text)
        out.append(Problem(id=text, prompt=text, answer=f"x={x}", task="equations"))
    return out
