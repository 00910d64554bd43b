"""Problems in seeded order, a share for each host, at a position that can be saved.

Every epoch is a fresh permutation drawn from (seed, epoch), so the problems of any
step follow from its number alone: nothing is buffered, nothing is replayed on
resume, and the order does not depend on how many hosts there are.
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
    """Batches of problems with their places in the data set."""

    def __init__(
        self,
        problems: Sequence[Problem],
        *,
        batch: int,
        seed: int,
        rows: Sequence[int] | None = None,
    ):
        """Starts at position 0.

        Args:
          batch: problems per step over all hosts.
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
        self.position = 0  # batches given out; save it, set it, and the stream goes on

    def next(self) -> tuple[np.ndarray, list[Problem]]:
        """This host's part of the next batch: places in the data set, and the problems."""
        start = self.position * self.batch
        places = np.asarray([self.place(start + row) for row in self.rows], np.int32)
        self.position += 1
        return places, [self.problems[int(place)] for place in places]

    def place(self, index: int) -> int:
        """The data-set place of the stream's index-th problem."""
        epoch, rest = divmod(index, len(self.problems))
        return int(epoch_order(len(self.problems), self.seed, epoch)[rest])
