"""A metric with its reduction and its unit, both named where it is made.

Microbatches, minibatches and hosts each hold a part of it; `merge` adds parts up, `value`
reads the whole.
"""

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Reduction = Literal["sum", "mean", "max"]


class Metric(struct.PyTreeNode):
    """A number, or one per turn; arrays of jax inside programs, of numpy on the host."""

    total: Any  # the sum, or the largest value
    count: Any  # of a mean: what the sum is divided by; else None
    reduction: Reduction = struct.field(pytree_node=False)
    unit: str = struct.field(pytree_node=False)  # "" for shares and counts

    def merge(self, other: "Metric") -> "Metric":
        """This part and another one."""
        if self.reduction == "max":
            maximum = jnp.maximum if isinstance(self.total, jax.Array) else np.maximum
            return self.replace(total=maximum(self.total, other.total))
        count = None if self.count is None else self.count + other.count
        return self.replace(total=self.total + other.total, count=count)

    def value(self) -> Any:
        """The sum, the mean or the largest, on the host; a mean of nothing is 0."""
        if self.count is None:
            return np.asarray(self.total, float)
        count = np.asarray(self.count, float)
        return np.divide(self.total, count, out=np.zeros_like(count), where=count > 0)


Metrics = Mapping[str, Metric]


def total(value: Any, unit: str = "") -> Metric:
    """A metric whose parts are added."""
    return Metric(total=value, count=None, reduction="sum", unit=unit)


def largest(value: Any, unit: str = "") -> Metric:
    """A metric whose largest part counts."""
    return Metric(total=value, count=None, reduction="max", unit=unit)


def mean(value: Any, count: Any, unit: str = "") -> Metric:
    """A metric that is a sum over a count of the same shape."""
    return Metric(total=value, count=count, reduction="mean", unit=unit)


def empty(metrics: Any) -> Any:
    """The parts of nothing, of the shapes of a tree of metrics."""

    def start(metric: Metric) -> Metric:
        low = -jnp.inf if metric.reduction == "max" else 0
        return jax.tree.map(lambda x: jnp.full(x.shape, low, x.dtype), metric)

    return jax.tree.map(start, metrics, is_leaf=lambda x: isinstance(x, Metric))


def merge(parts: Iterable[Metrics]) -> dict[str, Metric]:
    """Merges parts by name; a name that a part lacks is taken from the others."""

    def both(a: Metrics, b: Metrics) -> dict[str, Metric]:
        return {**a, **b, **{name: a[name].merge(b[name]) for name in a if name in b}}

    return reduce(both, parts, {})


def units(metrics: Metrics) -> dict[str, str]:
    """The units of metrics that have one, by name without turn."""
    return {name: metric.unit for name, metric in metrics.items() if metric.unit}


def flat(metrics: Metrics) -> dict[str, float]:
    """Numbers for the log; one value per turn gives name/turn1, name/turn2 and so on."""
    out: dict[str, float] = {}
    for name, metric in metrics.items():
        value = metric.value()
        if value.ndim:
            out |= {f"{name}/turn{turn}": float(x) for turn, x in enumerate(value, 1)}
        else:
            out[name] = float(value)
    return out
