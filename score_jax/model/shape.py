"""What a config makes the decoder compute, however it is said.

Two configs that differ only in how they say the same (a query scale that is the default
one, local layers where nothing is local), or in how it is computed (types, remat), have
equal shapes.
"""

import dataclasses
import math
from typing import Any

from score_jax.model.config import ModelConfig, RopeScaling

# How it is computed, and how long texts may be: neither changes any logit.
FREE = ("dtype", "unroll", "remat", "max_length")
SCALING_FIELDS = {  # of each kind; the others are not looked at
    "linear": ("kind", "factor"),
    "llama3": (
        "kind", "factor", "low_frequency_factor", "high_frequency_factor", "original_length",
    ),
    "yarn": ("kind", "factor", "original_length", "beta_fast", "beta_slow", "truncate"),
}  # fmt: skip
CLOSE = 1e-9  # relative; a query scale goes out as its inverse square


def shape(config: ModelConfig) -> dict[str, Any]:
    """The fields of a config that decide its logits, in one spelling."""
    local = any(config.is_local)
    near = config.rope_scaling
    if config.rope_local_base is not None:
        near = config.rope_local_scaling
    found = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in FREE
    }
    found |= {
        "query_scale": config.query_scale or config.head_dim**-0.5,
        "window": config.window if local else None,
        "local_layers": config.is_local,
        "rope_local_scaling": near if local else None,
        "rope_local_base": (config.rope_local_base or config.rope_base) if local else None,
    }
    return {name: spelt(value) for name, value in found.items()}


def spelt(value: Any) -> Any:
    """A RoPE scaling by the fields that its kind has; anything else as it is."""
    if not isinstance(value, RopeScaling):
        return value
    return {name: getattr(value, name) for name in (*SCALING_FIELDS[value.kind], "magnitude")}


def differences(config: ModelConfig, other: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Fields by which two configs compute differently, with both values."""
    mine, theirs = shape(config), shape(other)
    return {name: (mine[name], theirs[name]) for name in mine if not same(mine[name], theirs[name])}


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, numbers up to rounding."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=CLOSE)
    return a == b
