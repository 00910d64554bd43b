"""Floating-point operations of a traced program, and those that its model needs.

Counted before any partitioning, over all devices, loops as often as they run. Matrix
products only: they are what the peak of a chip counts.
"""

import math
from typing import Any

from score_jax.model.config import ModelConfig


def product_flops(equation: Any) -> float:
    """Of one dot_general: two for each multiplied pair."""
    (contract, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contract)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth


def count(jaxpr: Any) -> tuple[float, list[float]]:
    """Operations outside of while loops, and of one iteration of each."""
    once, loops = 0.0, []
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            once += product_flops(equation)
        elif name == "while":
            body, within = count(params["body_jaxpr"].jaxpr)
            assert not within, "a loop of unknown length inside another one"
            loops.append(body)
        else:
            times = params["length"] if name == "scan" else 1
            for inner in inner_jaxprs(params):
                outside, inside = count(inner)
                once += times * outside
                loops += [times * body for body in inside]
    return once, loops


def inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    """The programs that an equation holds, unwrapped."""
    found = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if hasattr(one, "jaxpr"):
                found.append(one.jaxpr)
            elif hasattr(one, "eqns"):
                found.append(one)
    return found


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters of the blocks' matrices: each is multiplied once per token."""
    attention = config.width * config.head_dim * 2 * (config.heads + config.kv_heads)
    return config.layers * (attention + 3 * config.width * config.mlp_dim)


def forward_flops(config: ModelConfig, tokens: float, seen: float, expanded: float) -> float:
    """Operations of one forward pass, counted from the model's shape.

    Args:
      tokens: that pass through the blocks.
      seen: positions that a token attends to, on average; the whole row where attention is
        masked after the product.
      expanded: tokens whose vocabulary is.
    """
    attention = 4.0 * config.layers * config.heads * config.head_dim * seen * tokens
    vocabulary = 2.0 * config.vocab_size * config.width * expanded
    return 2.0 * matrix_parameters(config) * tokens + attention + vocabulary
