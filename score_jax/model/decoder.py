"""The decoder: scanned blocks with an optional key/value cache.

The same apply function samples, scores and trains. It returns hidden states; logits are
a second method, so that callers choose the positions for which they are computed.
"""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int

from score_jax.model.attention import Attention, Cached, KeysValues
from score_jax.model.config import ModelConfig
from score_jax.model.layers import (
    GatedMlp,
    RmsNorm,
    layer_frequencies,
    layer_magnitudes,
    product,
    soft_cap,
    weight,
)
from score_jax.types import Cache, Params

UNLIMITED = 1 << 30  # tokens; the window of a global layer


class Block(nn.Module):
    """Attention and MLP, each on a normed copy of the residual stream."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        layer: tuple[Array, Array | None, Array, Array],
        cache: Cache | None,
        segments: Int[Array, "B T"] | None,
    ) -> tuple[Float[Array, "B T D"], KeysValues]:
        """Applies one layer.

        Args:
          layer: its rotary frequencies, rotary magnitude, window in tokens, and index.
        """
        config = self.config
        frequencies, magnitude, window, index = layer
        cached = None if cache is None else read_cache(cache, index)
        normed = RmsNorm(config, name="attention_norm")(x)
        attention = Attention(config, name="attention")
        mixed, new = attention(normed, positions, frequencies, window, cached, magnitude, segments)
        if config.post_norms:
            mixed = RmsNorm(config, name="attention_post_norm")(mixed)
        x = x + mixed
        mixed = GatedMlp(config, name="mlp")(RmsNorm(config, name="mlp_norm")(x))
        if config.post_norms:
            mixed = RmsNorm(config, name="mlp_post_norm")(mixed)
        return with_logical_constraint(x + mixed, ("batch", "length", "embed_out")), new


def rematerialised(config: ModelConfig) -> type[nn.Module]:
    """Block with the rematerialisation policy of config.remat."""
    if config.remat == "none":
        return Block
    policies = {
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    return nn.remat(Block, policy=policies[config.remat], prevent_cse=False)


class Decoder(nn.Module):
    """Maps token ids to hidden states."""

    config: ModelConfig

    def setup(self):
        """Creates the embedding, the stacked blocks and the final norm."""
        config = self.config
        shape = (config.vocab_size, config.width)
        self.embedding = weight(self, "embedding", shape, ("vocab", "embed"), config.width)
        if not config.tied_embeddings:
            self.unembedding = weight(self, "unembedding", shape, ("vocab", "embed"), config.width)
        whole: Any = nn.broadcast
        per_layer: Any = (whole, 0, whole, whole)  # positions, layer, cache, segments
        self.blocks = nn.scan(
            rematerialised(config),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=per_layer,
            length=config.layers,
            unroll=config.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config)
        self.final_norm = RmsNorm(config)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        cache: Cache | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Hidden states of a block of tokens, and the block's keys and values.

        Args:
          positions: index of each token in its row; consecutive within a block.
          cache: keys and values of the tokens before the block; slots from the block's
            first position on are ignored.
          segments: number of the dialogue that each token belongs to, where several are packed
            into one row; a token attends to its own dialogue only. None: one dialogue a row.
        """
        config = self.config
        dtype = jnp.dtype(config.dtype)
        # The lookup's result is sharded over the width, as the table is; only afterwards over
        # the batch. Both at once would make the partitioner all-gather the table.
        tokens = with_logical_constraint(tokens, ("lookup_batch", "length"))
        x = self.embedding.astype(dtype)[tokens]
        x = with_logical_constraint(x, ("lookup_batch", "length", "embed"))
        if config.embedding_scale:
            x = x * jnp.asarray(config.width**0.5, dtype)
        x = with_logical_constraint(x, ("batch", "length", "embed_out"))
        windows = jnp.where(jnp.asarray(config.is_local), config.window or UNLIMITED, UNLIMITED)
        rotations = (layer_frequencies(config), layer_magnitudes(config))
        layers = (*rotations, windows, jnp.arange(config.layers))
        x, (keys, values) = self.blocks(x, positions, layers, cache, segments)
        return self.final_norm(x), Cache(keys=keys, values=values)

    def output_table(self) -> Float[Array, "V D"]:
        """The unembedding, sharded over the vocabulary as the logits are."""
        table = self.embedding if self.config.tied_embeddings else self.unembedding
        return with_logical_constraint(table, ("vocab_out", "embed_out"))

    def logits(self, hidden: Float[Array, "B ... D"]) -> Float[Array, "B ... V"]:
        """Next-token logits in float32."""
        return vocabulary_logits(self.config, self.output_table(), hidden)


def forward(
    decoder: Decoder,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    cache: Cache | None = None,
    segments: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], Cache]:
    """Decoder.__call__ as a pure function of its parameters."""
    result = decoder.apply({"params": params}, tokens, positions, cache, segments)
    return cast(tuple[Array, Cache], result)


def output_table(decoder: Decoder, params: Params) -> Float[Array, "V D"]:
    """Decoder.output_table as a pure function of its parameters."""
    return cast(Array, decoder.apply({"params": params}, method="output_table"))


def vocabulary_logits(
    config: ModelConfig, table: Float[Array, "V D"], hidden: Float[Array, "B ... D"]
) -> Float[Array, "B ... V"]:
    """Next-token logits in float32.

    Args:
      table: result of `output_table`; callers compute it once for many chunks or steps.
    """
    between = (None,) * (hidden.ndim - 2)
    hidden = with_logical_constraint(hidden, ("logit_batch", *between, "embed_out"))
    logits = product("...D,VD->...V", hidden, table.astype(hidden.dtype), jnp.float32)
    logits = with_logical_constraint(logits, ("logit_batch", *between, "vocab_out"))
    return soft_cap(logits, config.logit_cap)


def compute_params(config: ModelConfig, params: Params) -> Params:
    """Parameters cast to config.dtype, as the decoder casts them before use.

    Norm scales stay in float32, in which the decoder uses them; so the result of a forward
    pass is the same as with the original parameters.
    """

    def cast_one(path: tuple, leaf: Array) -> Array:
        is_scale = jax.tree_util.keystr(path[-1:], simple=True) == "scale"
        return leaf if is_scale else leaf.astype(jnp.dtype(config.dtype))

    return jax.tree_util.tree_map_with_path(cast_one, params)


def read_cache(cache: Cache, layer: Int[Array, ""]) -> Cached:
    """A layer's keys and values in the first `cache.attended_slots` slots; None: all slots.

    A single slice over layers and slots: the TPU compiler fuses it into the product that
    reads it. Two slices, one after the other, it would materialise as a copy.
    """
    _, rows, heads, slots, size = cache.keys.shape
    shape = (1, rows, heads, cache.attended_slots or slots, size)
    keys, values = (
        jax.lax.dynamic_slice(x, (layer, 0, 0, 0, 0), shape)[0] for x in (cache.keys, cache.values)
    )
    return keys, values


def write_cache(cache: Cache, new: Cache, start: Int[Array, "B"]) -> Cache:
    """Writes a block's keys and values of all layers, each row's from its slot `start` on.

    A row-wise dynamic_update_slice: in place where the cache is donated or carried.
    """

    def write_row(row: Array, block: Array, slot: Array) -> Array:
        return jax.lax.dynamic_update_slice(row, block, (0, 0, slot, 0))  # L K S H

    write = jax.vmap(write_row, in_axes=(1, 1, 0), out_axes=1)
    return cache.replace(
        keys=write(cache.keys, new.keys, start), values=write(cache.values, new.values, start)
    )


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters, from their shapes; none is allocated."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens, tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(shapes)))
