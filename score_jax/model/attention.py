"""Grouped-query attention over a block of new tokens and, when decoding, a cache.

New tokens always attend to each other causally. With a cache they also attend to the
slots before the block's first token; the block's keys and values are returned, not
written, so that the caller writes those of all layers at once:

                 cache slots          block
                 0 1 2 3 4 5 6 7      a b
    query a      x x x x x . . .      x .       row whose block starts at position 5
    query b      x x x x x . . .      x x

The head axis precedes the slot axis, in the cache too, so that a decode step reads a
layer's slice of the cache in place. With slots first the TPU compiler copies that slice
(docs/plan.md).

Without a cache (learner, prefill) a kernel of `fused_attention` may take the place of the
masked softmax; config.attention says which.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from score_jax.model.config import ModelConfig
from score_jax.model.fused_attention import fused_attention
from score_jax.model.layers import RmsNorm, product, rotate, soft_cap, vector, weight

KeysValues = tuple[Float[Array, "B K T H"], Float[Array, "B K T H"]]
Cached = tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]


def visible(
    queries: Int[Array, "B T"], keys: Int[Array, "#B S"], window: Int[Array, ""]
) -> Bool[Array, "B T S"]:
    """The attention mask: True for keys at or before the query and within the window."""
    distance = queries[:, :, None] - keys[:, None, :]
    return (distance >= 0) & (distance < window)


class Attention(nn.Module):
    """Projections, rotary positions, masked softmax and output projection of one layer."""

    config: ModelConfig

    def project(self, x: Array, name: str, heads: int, axis: str) -> Float[Array, "B T N H"]:
        """Queries, keys or values of all heads, with bias where the family has one."""
        config = self.config
        shape = (config.width, heads, config.head_dim)
        axes = ("embed", axis, "head_dim")
        matrix = weight(self, name, shape, axes, config.width, x.dtype)
        y = product("BTD,DNH->BTNH", x, matrix)
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
        cached: Cached | None,
        magnitude: Float[Array, ""] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KeysValues]:
        """Applies attention; also returns the keys and values of the block.

        Args:
          cached: keys and values of S slots; slot s holds position s.
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
        if cached is None and config.attention in ("cudnn", "splash"):
            mixed = fused_attention(config, query, key, value, window, segments)
            return self.output(mixed), (key, value)

        mask = visible(positions, positions, window)
        if segments is not None:
            mask &= segments[:, :, None] == segments[:, None, :]
        scores = self.scores(query, key, mask)
        if cached is not None:
            slots = jnp.arange(cached[0].shape[2])[None, :]
            past = visible(positions, slots, window) & (slots < positions[:, :1])[:, None, :]
            cached_scores = self.scores(query, cached[0], past)
            scores = jnp.concatenate([cached_scores, scores], axis=-1)  # B K G T S+T
        probs = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        block = x.shape[1]
        mixed = product("BKGTS,BKSH->BTKGH", probs[..., -block:], value)
        if cached is not None:
            mixed += product("BKGTS,BKSH->BTKGH", probs[..., :-block], cached[1])
        mixed = mixed.reshape(*x.shape[:2], config.heads, config.head_dim)
        return self.output(mixed), (key, value)

    def output(self, mixed: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        """The projection of all heads' mixed values."""
        config = self.config
        shape = (config.heads, config.head_dim, config.width)
        fan_in = config.heads * config.head_dim
        out = weight(self, "out", shape, ("heads", "head_dim", "embed"), fan_in, mixed.dtype)
        return product("BTNH,NHD->BTD", mixed, out)

    def scores(
        self, query: Array, key: Array, mask: Bool[Array, "B T S"]
    ) -> Float[Array, "B K G T S"]:
        """Scaled, capped and masked logits in float32; query heads grouped by key head."""
        config = self.config
        scale = config.query_scale or config.head_dim**-0.5
        grouped = query.reshape(*query.shape[:2], config.kv_heads, -1, config.head_dim)
        logits = product("BTKGH,BKSH->BKGTS", grouped * scale, key, jnp.float32)
        logits = soft_cap(logits, config.attention_cap)
        return jnp.where(mask[:, None, None], logits, -1e30)
