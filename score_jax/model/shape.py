"""A normal form of model configs, to compare which function the decoder computes.

Configs have equal shapes if they differ only in spelling (a query scale equal to the
default, a window without local layers) or in execution (dtype, remat, attention).
"""

import dataclasses
import math
from typing import Any

from score_jax.model.config import ModelConfig, RopeScaling

# Fields that change no logit.
IMPLEMENTATION_FIELDS = ("dtype", "unroll", "remat", "attention", "max_length")
SCALING_FIELDS = {  # kind: the fields that it uses
    "linear": ("kind", "factor"),
    "llama3": (
        "kind", "factor", "low_frequency_factor", "high_frequency_factor", "original_length",
    ),
    "yarn": ("kind", "factor", "original_length", "beta_fast", "beta_slow", "truncate"),
}  # fmt: skip
CLOSE = 1e-9  # relative tolerance: a query scale is exported as its inverse square


def shape(config: ModelConfig) -> dict[str, Any]:
    """The fields of a config that determine its logits, in normal form."""
    local = any(config.is_local)
    near = config.rope_scaling
    if config.rope_local_base is not None:
        near = config.rope_local_scaling
    found = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in IMPLEMENTATION_FIELDS
    }
    found |= {
        "query_scale": config.query_scale or config.head_dim**-0.5,
        "window": config.window if local else None,
        "local_layers": config.is_local,
        "rope_local_scaling": near if local else None,
        "rope_local_base": (config.rope_local_base or config.rope_base) if local else None,
    }
    return {name: normalised(value) for name, value in found.items()}


def normalised(value: Any) -> Any:
    """Reduces a RopeScaling to the fields that its kind uses; returns other values unchanged."""
    if not isinstance(value, RopeScaling):
        return value
    return {name: getattr(value, name) for name in (*SCALING_FIELDS[value.kind], "magnitude")}


def differences(config: ModelConfig, other: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Fields of the normal form in which two configs differ, with both values."""
    a, b = shape(config), shape(other)
    return {name: (a[name], b[name]) for name in a if not same(a[name], b[name])}


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal; floats up to rounding."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=CLOSE)
    return a == b
