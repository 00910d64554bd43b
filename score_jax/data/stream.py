"""A stream of problem batches in seeded order, sharded over hosts, with a saveable position.

Every epoch is a new permutation drawn from (seed, epoch), so the problem of a draw
depends only on its ordinal: nothing is buffered, nothing is replayed on resume, and the
order does not depend on the number of hosts. A stage's stream continues where its
parent's stopped.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

Item = TypeVar("Item")  # a problem, or a kept dialogue


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits a data set."""
    order = np.random.default_rng([seed, epoch]).permutation(size)
    order.setflags(write=False)  # shared by callers through the cache
    return order


class Stream(Generic[Item]):
    """Batches of problems with the ordinals of their draws."""

    def __init__(
        self,
        problems: Sequence[Item],
        *,
        batch: int,
        seed: int,
        rows: Sequence[int] | None = None,
        begin: int = 0,
    ):
        """Starts at position 0.

        Args:
          batch: problems per step over all hosts.
          rows: rows of the batch that this host reads; None: all.
          begin: number of draws by earlier stages.

        Raises:
          ValueError: `problems` is empty, or `batch` is below 1.
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
        self.position = 0  # batches returned so far; setting it moves the stream

    def next(self) -> tuple[np.ndarray, list[int], list[Item]]:
        """This host's rows of the next batch: ordinals of the draws, indices and problems."""
        start = self.begin + self.position * self.batch
        draws = [start + row for row in self.rows]
        self.position += 1
        indices = [self.index(draw) for draw in draws]
        return np.asarray(draws, np.int32), indices, [self.problems[i] for i in indices]

    def index(self, draw: int) -> int:
        """The index in the data set of a draw."""
        epoch, rest = divmod(draw, len(self.problems))
        return int(epoch_order(len(self.problems), self.seed, epoch)[rest])
