"""Counts floating-point operations of a traced program and of a model's forward pass.

Operations are counted before partitioning, over all devices, and multiplied by the trip
counts of scans. Only matrix products count, as in a chip's peak.
"""

import math
from typing import Any

from score_jax.model.config import ModelConfig


def product_flops(equation: Any) -> float:
    """Operations of one dot_general: a multiplication and an addition per pair."""
    (contract, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contract)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth


def count(jaxpr: Any) -> tuple[float, list[float]]:
    """Operations outside of while loops, and those of one iteration of each while loop."""
    once, loops = 0.0, []
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            once += product_flops(equation)
        elif name == "while":
            body, nested = count(params["body_jaxpr"].jaxpr)
            assert not nested, "a while loop inside a while loop: its trip count is unknown"
            loops.append(body)
        else:
            times = params["length"] if name == "scan" else 1
            for inner in inner_jaxprs(params):
                outside, inside = count(inner)
                once += times * outside
                loops += [times * body for body in inside]
    return once, loops


def inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among an equation's parameters."""
    found = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if hasattr(one, "jaxpr"):
                found.append(one.jaxpr)
            elif hasattr(one, "eqns"):
                found.append(one)
    return found


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters of the blocks' matrices: each takes one multiply-add per token."""
    attention = config.width * config.head_dim * 2 * (config.heads + config.kv_heads)
    return config.layers * (attention + 3 * config.width * config.mlp_dim)


def forward_flops(config: ModelConfig, tokens: float, attended: float, with_logits: float) -> float:
    """Operations of one forward pass, computed from the model's shape.

    Args:
      tokens: number of tokens that pass through the blocks.
      attended: mean number of positions that a token attends to.
      with_logits: number of tokens whose logits are computed.
    """
    attention = 4.0 * config.layers * config.heads * config.head_dim * attended * tokens
    vocabulary = 2.0 * config.vocab_size * config.width * with_logits
    return 2.0 * matrix_parameters(config) * tokens + attention + vocabulary
