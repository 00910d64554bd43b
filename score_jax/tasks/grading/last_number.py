"""Compares the last number that an attempt states with the gold answer, as texts."""

from collections.abc import Sequence

from score_jax.records import Grade


def grade(found: Sequence[str], gold: str, missing: str) -> Grade:
    """The grade of an attempt.

    Args:
      found: the numbers that it states, in their order.
      missing: what to tell where there is none.
    """
    if not found:
        return Grade(verdict="unparsable", reward=0.0, detail=missing)
    right = found[-1] == gold
    verdict = "correct" if right else "wrong"
    return Grade(verdict=verdict, reward=float(right), extracted=found[-1])
