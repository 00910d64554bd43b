"""A sequence whose problems are made or read when they are asked for."""

from collections.abc import Callable, Sequence
from typing import Any

from score_jax.records import Problem


class Lazy(Sequence[Problem]):
    """Problems by place; nothing is held."""

    def __init__(self, length: int, read: Callable[[int], Problem]):
        """Takes how many there are, and what gives the problem at a place from 0."""
        self._length, self._read = length, read

    def __len__(self) -> int:
        """How many there are."""
        return self._length

    def __getitem__(self, index: Any) -> Any:
        """Returns the problem at a place, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self._read(place) for place in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"place {index} of {self._length} problems")
        return self._read(index % self._length)
