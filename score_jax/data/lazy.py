"""A sequence of problems that are made or read on access."""

from collections.abc import Callable, Sequence
from typing import Any

from score_jax.records import Problem


class Lazy(Sequence[Problem]):
    """A sequence of problems that stores none of them."""

    def __init__(self, length: int, read: Callable[[int], Problem]):
        """Args: length: number of problems; read: returns the problem at an index from 0."""
        self._length, self._read = length, read

    def __len__(self) -> int:
        """The number of problems."""
        return self._length

    def __getitem__(self, index: Any) -> Any:
        """Returns the problem at an index, or a list for a slice."""
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} of {self._length} problems")
        return self._read(index % self._length)
