"""What a field of a config may hold, as its annotation says.

Every config dataclass calls `check_fields` first of all. A number must be of its kind
and finite, in tuples as well; a range stands in the annotation: `workers: Count`.
"""

import dataclasses
import math
import types
from functools import lru_cache
from numbers import Integral, Real
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

LARGEST = 2**31 - 1  # what 32 bits on a device hold


@dataclasses.dataclass(frozen=True)
class Range:
    """Values from `low` to `high`; `text` says so to people."""

    text: str
    low: float = -math.inf
    high: float = math.inf
    open: bool = False  # low itself, and a high that is finite, do not belong to it

    def holds(self, value: float) -> bool:
        """Whether a number lies in it."""
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
Devices = Annotated[int, Range("at least 1, or -1: as many as there are", low=-1)]

KINDS: dict[Any, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a finite number"),
    str: (str, "a text"),
}


def check_fields(config: Any, path: str) -> None:
    """Checks a dataclass against its own annotations.

    Args:
      path: of the section, for messages.

    Raises:
      ValueError: a value is of another kind, not finite or out of its range.
    """
    for name, hint in hints(type(config)).items():
        value = getattr(config, name)
        demand = unmet(hint, value)
        if demand:
            raise ValueError(f"{path}.{name} is {value!r}; set {demand}")


@lru_cache
def hints(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields."""
    found = get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def unmet(hint: Any, value: Any) -> str:
    """What a value would have to be; "" if it is."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = unmet(parts[0], value)
        if found and not isinstance(value, KINDS[parts[0]][0]):
            return found
        return next((part.text for part in parts[1:] if not part.holds(value)), found)
    if origin in (Union, types.UnionType):
        told = [unmet(part, value) for part in parts]
        return "" if "" in told else " or ".join(text for text in told if text)
    if origin is tuple:
        if not isinstance(value, tuple):
            return "a tuple"
        told = [unmet(parts[0], part) for part in value] if parts[1:] == (...,) else []
        return next((f"{text} in each place" for text in told if text), "")
    if hint is None or hint is type(None):
        return "" if value is None else "None"
    if hint is bool:
        return "" if type(value).__name__ in ("bool", "bool_") else "True or False"
    if hint in KINDS:
        return unmet_kind(*KINDS[hint], value)
    return ""  # Literal, Any and sections have checks of their own


def unmet_kind(kind: type, text: str, value: Any) -> str:
    """As `unmet`, for plain numbers and texts."""
    if not isinstance(value, kind) or isinstance(value, bool):
        return text
    if isinstance(value, Integral):
        return "" if abs(int(value)) <= LARGEST else f"{text} within +-{LARGEST}"
    if isinstance(value, Real):
        return "" if math.isfinite(value) else text
    return ""
