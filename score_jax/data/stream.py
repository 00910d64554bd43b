"""Problems in seeded order, a share for each host, at a position that can be saved.

Every epoch is a fresh permutation drawn from (seed, epoch), so the problem of any
draw follows from its ordinal alone: nothing is buffered, nothing is replayed on
resume, and the order does not depend on how many hosts there are. A stage's stream
goes on where its parent's stopped.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from score_jax.records import Problem


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits a data set."""
    order = np.random.default_rng([seed, epoch]).permutation(size)
    order.setflags(write=False)  # kept between calls
    return order


class Stream:
    """Batches of problems with the ordinals of their draws."""

    def __init__(
        self,
        problems: Sequence[Problem],
        *,
        batch: int,
        seed: int,
        rows: Sequence[int] | None = None,
        begin: int = 0,
    ):
        """Starts at position 0.

        Args:
          batch: problems per step over all hosts.
          begin: draws that earlier stages have made.
          rows: which of them this host takes; None: all.

        Raises:
          ValueError: there are no problems, or none per step.
        """
        if not problems:
            raise ValueError("data holds no problems; check config.data")
        if batch < 1:
            raise ValueError(f"config.batch is {batch}; set at least 1")
        self.problems = problems
        self.batch = batch
        self.seed = seed
        self.rows = range(batch) if rows is None else rows
        self.begin = begin
        self.position = 0  # batches given out; save it, set it, and the stream goes on

    def next(self) -> tuple[np.ndarray, list[Problem]]:
        """This host's part of the next batch: ordinals of its draws, and their problems."""
        start = self.begin + self.position * self.batch
        draws = [start + row for row in self.rows]
        self.position += 1
        return np.asarray(draws, np.int32), [self.problems[self.place(draw)] for draw in draws]

    def place(self, draw: int) -> int:
        """The data-set place of a draw."""
        epoch, rest = divmod(draw, len(self.problems))
        return int(epoch_order(len(self.problems), self.seed, epoch)[rest])
