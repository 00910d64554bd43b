"""Grouped-query attention over a block of new tokens and, when decoding, caches.

New tokens always attend to each other causally. They also attend to the tokens of each cache,
which all stand before the block; the block's keys and values are returned, not written, so that
the caller chooses where. A cache says per slot which position its token has, so a slot may be
empty, and a row's tokens may lie anywhere. Here two rows share the cache of their prompt:

                 prompt          own             block
    position     0 1 2 . .       3 4 . 5 .       6 7
    query a      x x x . .       x x . x .       x .       row that has drawn three tokens
    query b      x x x . .       x x . x .       x x

The head axis precedes the slot axis, in the cache too, so that a decode step reads a
layer's slice of the cache in place. With slots first the TPU compiler copies that slice
(docs/plan.md).

Without a cache (learner, prefill) a kernel of `fused_attention` may take the place of the
masked softmax; config.attention says which.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from score_jax.model.config import ModelConfig
from score_jax.model.fused_attention import fused_attention
from score_jax.model.layers import (
    RmsNorm,
    linear,
    product,
    rotate,
    soft_cap,
    vector,
    weight,
    wide_product,
)

KeysValues = tuple[Float[Array, "B K T H"], Float[Array, "B K T H"]]
# Keys, values, and the position of each slot's token, negative where there is none. The rows of
# a cache, C, divide B: rows of a batch share it in groups of B / C. C and S are each cache's own.
Cached = tuple[Float[Array, "_ K _ H"], Float[Array, "_ K _ H"], Int[Array, "_ _"]]


def visible(
    queries: Int[Array, "B T"], keys: Int[Array, "#B S"], window: Int[Array, ""]
) -> Bool[Array, "B T S"]:
    """The attention mask: True for keys at or before the query and within the window."""
    distance = queries[:, :, None] - keys[:, None, :]
    return (distance >= 0) & (distance < window)


def past(
    queries: Int[Array, "B T"], slots: Int[Array, "C S"], window: Int[Array, ""]
) -> Bool[Array, "B T S"]:
    """The mask of a cache: its slots that hold a token within the window."""
    slots = jnp.repeat(slots, len(queries) // len(slots), axis=0)
    return visible(queries, slots, window) & (slots >= 0)[:, None, :]


def query_blocks(length: int) -> list[tuple[int, int]]:
    """Where blocks of queries begin and end, each of 64 or more, at most eight.

    A block needs no keys behind its end, which about halves the work of a long row.
    """
    count = min(max(length // 64, 1), 8)
    ends = [length * number // count for number in range(count + 1)]
    return list(pairwise(ends))


def mix(
    probs: Float[Array, "B K Q T S"], values: Float[Array, "C K S H"]
) -> Float[Array, "B T K Q H"]:
    """The weighted sums of values, each cache for its own group of rows.

    As products of two matrices with the values on the right, which a CPU reads as they lie; for
    the order in which the result is wanted, einsum would take them as the left factor, transposed.
    """
    caches, (heads, shared, block, slots) = len(values), probs.shape[1:]
    grouped = jnp.swapaxes(probs.reshape(caches, -1, heads, shared * block, slots), 1, 2)
    rows = grouped.reshape(caches, heads, -1, slots)
    mixed = product("CKNS,CKSH->CKNH", rows, values)
    mixed = mixed.reshape(caches, heads, -1, shared, block, values.shape[-1])
    return jnp.moveaxis(mixed, (1, 3), (3, 4)).reshape(-1, block, heads, shared, values.shape[-1])


class Attention(nn.Module):
    """Projections, rotary positions, masked softmax and output projection of one layer."""

    config: ModelConfig

    def project(self, x: Array, name: str, heads: int, axis: str) -> Float[Array, "B T N H"]:
        """Queries, keys or values of all heads, with bias where the family has one."""
        config = self.config
        shape = (config.width, heads, config.head_dim)
        axes = ("embed", axis, "head_dim")
        matrix = weight(self, name, shape, axes, config.width, x.dtype)
        y = linear(x, matrix)
        if config.qkv_bias:
            size = heads * config.head_dim
            bias = vector(self, f"{name}_bias", size, (axis,), 0.0)
            y = y + bias.reshape(heads, config.head_dim).astype(x.dtype)
        return y

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        frequencies: Float[Array, "Half"],
        window: Int[Array, ""],
        cached: Sequence[Cached],
        magnitude: Float[Array, ""] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KeysValues]:
        """Applies attention; also returns the keys and values of the block.

        Args:
          cached: what else the block attends to; tokens before it.
          magnitude: factor of rotated queries and keys (YaRN); None: 1.
          segments: a token attends to those of its own segment only; None: to all.
        """
        config = self.config
        query = self.project(x, "query", config.heads, "heads")
        key = self.project(x, "key", config.kv_heads, "kv_heads")
        value = self.project(x, "value", config.kv_heads, "kv_heads")
        if config.qk_norm:
            query = RmsNorm(config, axis="head_dim", name="query_norm")(query)
            key = RmsNorm(config, axis="head_dim", name="key_norm")(key)
        query = rotate(query, positions, frequencies, magnitude)
        key = rotate(key, positions, frequencies, magnitude)
        key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)  # B K T H
        if not cached and config.attention in ("cudnn", "splash"):
            mixed = fused_attention(config, query, key, value, window, segments)
            return self.output(mixed), (key, value)

        mask = visible(positions, positions, window)
        if segments is not None:
            mask &= segments[:, :, None] == segments[:, None, :]
        earlier = [(keys, values, past(positions, at, window)) for keys, values, at in cached]
        blocks = []
        for begin, end in query_blocks(x.shape[1]):
            parts = [(keys, values, seen[:, begin:end]) for keys, values, seen in earlier]
            parts.append((key[:, :, :end], value[:, :, :end], mask[:, begin:end, :end]))
            blocks.append(self.attend(query[:, begin:end], parts))
        return self.output(jnp.concatenate(blocks, axis=1)), (key, value)

    def attend(
        self,
        query: Float[Array, "B T N H"],
        parts: Sequence[tuple[Float[Array, "_ K _ H"], Float[Array, "_ K _ H"], Array]],
    ) -> Float[Array, "B T N H"]:
        """The values that queries see, mixed by one softmax over all parts.

        Args:
          parts: keys, values, and the mask [B T S] of the queries.
        """
        scores = [self.scores(query, keys, mask) for keys, _, mask in parts]
        probs = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(query.dtype)
        shares = jnp.split(probs, np.cumsum([part.shape[-1] for part in scores])[:-1], axis=-1)
        mixed = reduce(jnp.add, map(mix, shares, [values for _, values, _ in parts]))
        return mixed.reshape(query.shape)

    def output(self, mixed: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        """The projection of all heads' mixed values."""
        config = self.config
        shape = (config.heads, config.head_dim, config.width)
        fan_in = config.heads * config.head_dim
        out = weight(self, "out", shape, ("heads", "head_dim", "embed"), fan_in, mixed.dtype)
        return linear(mixed, out, 2)

    def scores(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "C K S H"],
        mask: Bool[Array, "B T S"],
    ) -> Float[Array, "B K Q T S"]:
        """Scaled, capped and masked logits in float32; Q query heads for each key head."""
        config, (rows, block) = self.config, query.shape[:2]
        scale = config.query_scale or config.head_dim**-0.5
        grouped = (query * scale).reshape(len(key), -1, block, config.kv_heads, *self.per_key)
        logits = wide_product("CGTKQH,CKSH->CGKQTS", grouped, key)
        logits = soft_cap(logits.reshape(rows, *logits.shape[2:]), config.attention_cap)
        return jnp.where(mask[:, None, None], logits, -1e30)

    @property
    def per_key(self) -> tuple[int, int]:
        """Q, the query heads for each key head, and H."""
        return self.config.heads // self.config.kv_heads, self.config.head_dim
