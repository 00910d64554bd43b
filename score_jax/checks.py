"""Checks config dataclasses against their field annotations.

Every config dataclass calls `check_fields` first in `__post_init__`. A number must have
the annotated type and be finite, also inside tuples; an annotation may add a range, such
as `workers: Count`.
"""

import dataclasses
import math
import types
from collections.abc import Iterable
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

LARGEST = 2**31 - 1  # the largest int32


@dataclasses.dataclass(frozen=True)
class Range:
    """Values from `low` to `high`; `text` describes them in messages."""

    text: str
    low: float = -math.inf
    high: float = math.inf
    open: bool = False  # excludes both bounds

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range."""
        if self.open:
            return self.low < value < self.high
        return self.low <= value <= self.high


Count = Annotated[int, Range("at least 1", low=1)]
Natural = Annotated[int, Range("a value >= 0", low=0)]
Seed = Annotated[int, Range(f"a value in 0..{LARGEST}", low=0)]
Share = Annotated[float, Range("a value in 0..1", low=0, high=1)]
Decay = Annotated[float, Range("a value in 0..1, below 1", low=0, high=math.nextafter(1, 0))]
Positive = Annotated[float, Range("a value > 0 and finite", low=0, open=True)]
NotNegative = Annotated[float, Range("a finite value >= 0", low=0)]
Kept = Annotated[int, Range("a value >= 0, or -1: all", low=-1)]
Devices = Annotated[int, Range("at least 1, or -1: as many as there are", low=-1)]

RENAMED_FIELDS = {  # of a config, before version 0.1.0: now
    "gap_limit": "mismatch_limit",
    "mesh.swing": "mesh.sampling_tensor",
    "sampling.samples": "sampling.group_size",
    "sampling.branches": "sampling.second_attempts",
    "sampling.spans": "sampling.decode_segments",
    "learner.chunk": "learner.logits_chunk",
    "objective.kl": "estimator.kl",
    "objective.baseline": "estimator.baseline",
    "objective.normalise": "estimator.normalise",
    "objective.length_norm": "estimator.length_norm",
    "objective.clip": "estimator.clip",
    "objective.importance_cap": "estimator.importance_cap",
    "log.transcripts": "log.rollouts",
    "log.transcripts_every": "log.rollouts_every",
    "practice.careful": "examples.careful",
    "practice.careful_at_last": "examples.careful_at_last",
    "practice.settling": "examples.settling",
    "practice.right": "examples.right",
    "practice.weight_noise": "learner.weight_noise",
}

KINDS: dict[Any, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a finite number"),
    str: (str, "a text"),
}


def check_recorded_names(recorded: Iterable[str], file: Path) -> None:
    """Refuses the config of a run that was begun under former field names.

    Args:
      recorded: dotted names of the fields in `file`.

    Raises:
      ValueError: a field has been renamed since.
    """
    former = [name for name in recorded if name in RENAMED_FIELDS]
    if former:
        names = ", ".join(f"{name} is {RENAMED_FIELDS[name]} now" for name in sorted(former))
        raise ValueError(
            f"{file} is of an earlier version of score_jax ({names}); choose another --workdir, or "
            "continue that run with the version that began it"
        )


def check_fields(config: Any, path: str) -> None:
    """Checks a dataclass against its annotations.

    Args:
      path: dotted path of the section, for messages.

    Raises:
      ValueError: a value has another type, is not finite or is out of its range.
    """
    for name, hint in hints(type(config)).items():
        value = getattr(config, name)
        requirement = unmet(hint, value)
        if requirement:
            raise ValueError(f"{path}.{name} is {value!r}; set {requirement}")


@lru_cache
def hints(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields."""
    found = get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def unmet(hint: Any, value: Any) -> str:
    """The requirement of an annotation that a value does not meet; "" if it meets all."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = unmet(parts[0], value)
        if found and not isinstance(value, KINDS[parts[0]][0]):
            return found
        return next((part.text for part in parts[1:] if not part.holds(value)), found)
    if origin in (Union, types.UnionType):
        found = [unmet(part, value) for part in parts]
        return "" if "" in found else " or ".join(text for text in found if text)
    if origin is tuple:
        if not isinstance(value, tuple):
            return "a tuple"
        found = [unmet(parts[0], part) for part in value] if parts[1:] == (...,) else []
        return next((f"{text} for each element" for text in found if text), "")
    if hint is None or hint is type(None):
        return "" if value is None else "None"
    if hint is bool:
        return "" if type(value).__name__ in ("bool", "bool_") else "True or False"
    if hint in KINDS:
        return unmet_kind(*KINDS[hint], value)
    return ""  # Literal, Any and sections have checks of their own


def unmet_kind(kind: type, text: str, value: Any) -> str:
    """As `unmet`, for numbers and strings without a range."""
    if not isinstance(value, kind) or isinstance(value, bool):
        return text
    if isinstance(value, Integral):
        return "" if abs(int(value)) <= LARGEST else f"{text} within +-{LARGEST}"
    if isinstance(value, Real):
        return "" if math.isfinite(value) else text
    return ""
