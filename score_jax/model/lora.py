"""Low-rank adapters: a small tree that is trained instead of the base parameters.

An adapter holds, for each target of each layer, a pair a, b whose product is added
to the frozen base: base + alpha / rank * a @ b. The reference model is the base
tree itself, so there is no second copy of it in memory:

    policy      decoder.apply({"params": attach(base, adapter, config)}, ...)
    reference   decoder.apply({"params": base}, ...)

`attach` copies nothing: the decoder adds the product inside each layer, so that only one
layer's sum is in memory at a time. `merge` computes the summed tree, for export and for
sampling, where adding once is cheaper than adding at every token.

Source: arXiv:2106.09685, section 4.1.
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from score_jax.checks import Count, Positive, check_fields
from score_jax.model.layers import LORA_A, LORA_B, adapter_product
from score_jax.types import Params

# Target: number of its axes, after the layer axis, that are contracted with the input.
INPUT_AXES = {"query": 1, "key": 1, "value": 1, "out": 2, "gate": 1, "up": 1, "down": 1}
Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapter's rank, scale and target matrices."""

    rank: Count = 16
    alpha: Positive = 32.0  # the product is scaled by alpha / rank
    targets: tuple[str, ...] = tuple(INPUT_AXES)

    def __post_init__(self):
        check_fields(self, "lora")
        unknown = [name for name in self.targets if name not in INPUT_AXES]
        if unknown or not self.targets:
            raise ValueError(
                f"lora.targets is {self.targets}; choose some of {', '.join(INPUT_AXES)}"
            )

    @property
    def scale(self) -> float:
        """The factor of the product a @ b."""
        return self.alpha / self.rank


def init_lora(key: jax.Array, boxed: Params, config: LoraConfig) -> Params:
    """A new adapter: a is normal and b is zero, so the policy equals the base.

    Args:
      boxed: the base parameters or their shapes with logical axes, as Decoder.init
        returns them.

    Returns:
      {path of the target: {"a", "b"}} in float32, with logical axes taken from the target's.
    """
    leaves = flat(boxed)
    adapter: dict[Path, Any] = {}
    for index, path in enumerate(sorted(p for p in leaves if p[-1] in config.targets)):
        leaf, split = leaves[path], 1 + INPUT_AXES[path[-1]]
        shape, axes = leaf.value.shape, leaf.names
        width = math.prod(shape[1:split])
        a_shape, b_shape = (*shape[:split], config.rank), (shape[0], config.rank, *shape[split:])
        a = jax.random.normal(jax.random.fold_in(key, index), a_shape) / math.sqrt(width)
        adapter[*path, "a"] = nn.LogicallyPartitioned(a, (*axes[:split], None))
        b_axes = (axes[0], None, *axes[split:])
        adapter[*path, "b"] = nn.LogicallyPartitioned(jnp.zeros(b_shape), b_axes)
    return traverse_util.unflatten_dict(adapter)


def attach(base: Params, adapter: Params, config: LoraConfig) -> Params:
    """Parameters for the decoder: the frozen base with the adapter's leaves added to the tree.

    No array is copied, and only the adapter gets gradients.
    """
    tree = {path: jax.lax.stop_gradient(leaf) for path, leaf in flat(base).items()}
    for (*parent, name, factor), leaf in flat(adapter).items():
        if factor == "a":
            tree[*parent, name + LORA_A] = leaf * config.scale
        else:
            tree[*parent, name + LORA_B] = leaf
    return traverse_util.unflatten_dict(tree)


def merge(base: Params, adapter: Params, config: LoraConfig) -> Params:
    """The base parameters plus the adapter's products, as a tree of the base's structure."""
    tree, pairs = flat(base), flat(adapter)
    for path in dict.fromkeys(path[:-1] for path in pairs):
        delta = jax.vmap(adapter_product)(pairs[*path, "a"], pairs[*path, "b"])  # over layers
        tree[path] = tree[path] + (config.scale * delta).astype(tree[path].dtype)
    return traverse_util.unflatten_dict(tree)


def flat(tree: Params) -> dict[Path, Any]:
    """Flattens a tree to leaves by path; boxed leaves stay boxed."""
    return traverse_util.flatten_dict(tree)
