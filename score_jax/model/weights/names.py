"""The name, shape and axis order of each parameter in a Hugging Face folder.

The decoder stacks the parameters of all layers on a first axis; the files hold one tensor
per layer. A stored tensor is converted by splitting its rows or columns into heads and
permuting axes. Both are views, so that slicing the result reads only that slice.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from score_jax.model.config import ModelConfig

TEXT_PREFIXES = ("language_model.model.", "model.language_model.")  # of multimodal Gemma 3


class Tensors(Protocol):
    """Named tensors of a source, each read on demand."""

    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor by its name in `shapes`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One parameter of the decoder and its stored tensors."""

    path: tuple[str, ...]  # in the "params" collection
    names: tuple[str, ...]  # of the stored tensors: one per layer, or one
    stacked: bool  # the parameter has a first axis over layers
    split: tuple[int, ...]  # the stored shape with heads as an axis
    order: tuple[int, ...]  # axis i of a layer's parameter is axis order[i] of `split`
    stored: tuple[int, ...]  # the stored shape

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        layer = tuple(self.split[i] for i in self.order)
        return (len(self.names), *layer) if self.stacked else layer

    def from_stored(self, tensor: np.ndarray) -> np.ndarray:
        """One layer's tensor in the decoder's axis order, as a view."""
        return tensor.reshape(self.split).transpose(self.order)

    def to_stored(self, value: np.ndarray) -> np.ndarray:
        """One layer's parameter in the file's axis order; inverse of `from_stored`."""
        return value.transpose(np.argsort(self.order)).reshape(self.stored)


def entries(config: ModelConfig) -> list[Entry]:
    """Every parameter of a decoder, with its stored tensors."""
    d, v = config.width, config.vocab_size
    top = [
        (("embedding",), "model.embed_tokens.weight", (v, d), (0, 1), (v, d)),
        (("final_norm", "scale"), "model.norm.weight", (d,), (0,), (d,)),
    ]
    if not config.tied_embeddings:
        top.append((("unembedding",), "lm_head.weight", (v, d), (0, 1), (v, d)))
    found = [
        Entry(path=path, names=(name,), stacked=False, split=split, order=order, stored=stored)
        for path, name, split, order, stored in top
    ]
    for path, name, split, order in layer_rows(config):
        names = tuple(f"model.layers.{i}.{name}" for i in range(config.layers))
        found.append(
            Entry(
                path=("blocks", *path),
                names=names,
                stacked=True,
                split=split,
                order=order,
                stored=flat_shape(name, split),
            )
        )
    return found


Row = tuple[tuple[str, ...], str, tuple[int, ...], tuple[int, ...]]


def layer_rows(config: ModelConfig) -> list[Row]:
    """Path, stored name, split shape and axis order of each parameter of a layer."""
    d, n, k = config.width, config.heads, config.kv_heads
    h, f = config.head_dim, config.mlp_dim
    before_mlp = "pre_feedforward" if config.post_norms else "post_attention"
    rows: list[Row] = [
        (("attention_norm", "scale"), "input_layernorm.weight", (d,), (0,)),
        (("attention", "query"), "self_attn.q_proj.weight", (n, h, d), (2, 0, 1)),
        (("attention", "key"), "self_attn.k_proj.weight", (k, h, d), (2, 0, 1)),
        (("attention", "value"), "self_attn.v_proj.weight", (k, h, d), (2, 0, 1)),
        (("attention", "out"), "self_attn.o_proj.weight", (d, n, h), (1, 2, 0)),
        (("mlp_norm", "scale"), f"{before_mlp}_layernorm.weight", (d,), (0,)),
        (("mlp", "gate"), "mlp.gate_proj.weight", (f, d), (1, 0)),
        (("mlp", "up"), "mlp.up_proj.weight", (f, d), (1, 0)),
        (("mlp", "down"), "mlp.down_proj.weight", (d, f), (1, 0)),
    ]
    if config.qkv_bias:
        rows += [
            (("attention", "query_bias"), "self_attn.q_proj.bias", (n * h,), (0,)),
            (("attention", "key_bias"), "self_attn.k_proj.bias", (k * h,), (0,)),
            (("attention", "value_bias"), "self_attn.v_proj.bias", (k * h,), (0,)),
        ]
    if config.qk_norm:
        rows += [
            (("attention", "query_norm", "scale"), "self_attn.q_norm.weight", (h,), (0,)),
            (("attention", "key_norm", "scale"), "self_attn.k_norm.weight", (h,), (0,)),
        ]
    if config.post_norms:
        rows += [
            (("attention_post_norm", "scale"), "post_attention_layernorm.weight", (d,), (0,)),
            (("mlp_post_norm", "scale"), "post_feedforward_layernorm.weight", (d,), (0,)),
        ]
    return rows


def flat_shape(name: str, split: tuple[int, ...]) -> tuple[int, ...]:
    """The stored shape, in which the axes of heads and head_dim are merged."""
    if len(split) < 3:
        return split
    if name.endswith("o_proj.weight"):
        return (split[0], split[1] * split[2])
    return (split[0] * split[1], split[2])


def plain_name(name: str) -> str:
    """A tensor's name in the text-only model."""
    for prefix in TEXT_PREFIXES:
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name.removeprefix("language_model.")


def descend(tree: Any, path: tuple[str, ...]) -> Any:
    """The leaf of a nested dict at a path."""
    for key in path:
        tree = tree[key]
    return tree
