"""The splits of procedural problems: each problem's own, from a hash of its text."""

import zlib

SPLITS = {"train": (0, 70), "validation": (70, 80), "test": (80, 100)}  # percent of all problems


def split_of(text: str) -> str:
    """The split to which a text belongs, whatever else there is."""
    place = percentile(text)
    return next(name for name, (low, high) in SPLITS.items() if low <= place < high)


def percentile(text: str) -> int:
    """A number in 0..99 from a hash of the text."""
    return zlib.crc32(text.encode()) % 100


def check(split: str) -> None:
    """Refuses a split that there is not.

    Raises:
      ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"data.split is {split!r}; choose one of {', '.join(SPLITS)}")
