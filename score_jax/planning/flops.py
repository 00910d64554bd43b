"""Counts floating-point operations of a traced program and of a model's forward pass.

Operations are counted before partitioning, over all devices, and multiplied by the trip
counts of scans. Only matrix products count, as in a chip's peak; those inside a splash
attention kernel too, which the compiled program hides.
"""

import math
import operator
from typing import Any

from jax.interpreters import partial_eval

from score_jax.model.config import ModelConfig
from score_jax.planning.course import UNKNOWN, Course


def product_flops(equation: Any) -> float:
    """Operations of one dot_general: a multiplication and an addition per pair."""
    (contract, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contract)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth


def count(jaxpr: Any, course: Course = UNKNOWN) -> tuple[float, list[float]]:
    """Operations outside of while loops, and those of one iteration of each while loop.

    Of a conditional that does not choose between kernels the dearest branch counts, as often as
    chunks of logits are not skipped, and all loops.
    """
    once, loops = 0.0, []
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            once += product_flops(equation)
        elif name == "pallas_call":
            once += kernel_steps(equation) * count(params["jaxpr"])[0]
        elif name == "while":
            body, nested = count(live(params["body_jaxpr"].jaxpr), course)
            assert not nested, "a while loop inside a while loop: its trip count is unknown"
            loops.append(body)
        elif name == "cond":
            branches = [count(branch.jaxpr, course) for branch in params["branches"]]
            outside = [own for own, _ in branches]
            if course.kernels and has_kernel(params["branches"][0].jaxpr):
                once += sum(map(operator.mul, course.kernels, outside))
            else:
                once += course.chunks * max(outside)
            loops += [body for _, inside in branches for body in inside]
        else:
            times = repetitions(name, params)
            for inner in inner_jaxprs(params):
                outside, inside = count(inner, course)
                once += times * outside
                loops += [times * body for body in inside]
    return once, loops


def live(jaxpr: Any) -> Any:
    """A jaxpr without the equations that no result needs, which every compiler drops.

    An example is the product of a `jax.vjp` of which the derivative alone is used.
    """
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def has_kernel(jaxpr: Any) -> bool:
    """Whether a Pallas kernel is called."""
    return any(
        equation.primitive.name == "pallas_call"
        or any(map(has_kernel, inner_jaxprs(equation.params)))
        for equation in jaxpr.eqns
    )


def repetitions(name: str, params: dict[str, Any]) -> float:
    """How often an equation runs what it contains; under shard_map every device does."""
    if name == "shard_map":
        return params["mesh"].size
    return params["length"] if name == "scan" else 1


def kernel_steps(equation: Any) -> float:
    """Grid steps of a splash attention kernel that multiply: the others' blocks are masked.

    Of the n rows of blocks (dkv: columns) row i has the diagonal's and up to i others that are
    visible; the last axis of the grid is as long as the longest row.
    """
    grid = equation.params["grid_mapping"].grid
    width, rows = grid[-1], grid[-3 if "dkv" in str(equation.params["name"]) else -2]
    return math.prod(grid) * sum(min(i + 1, width) for i in range(rows)) / (rows * width)


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


def layer_shares(config: ModelConfig) -> tuple[float, float]:
    """The shares of global and local layers, in the order of `fused_attention`'s branches."""
    local = sum(config.is_local) / config.layers
    return 1 - local, local


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
