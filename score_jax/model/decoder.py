"""The one decoder: scanned blocks over an optional key/value cache.

The same apply function samples, scores and trains. It returns hidden states; the
logits are a second method, so that callers decide at which positions the
vocabulary is ever expanded.
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

FAR = 1 << 30  # the window of a layer that sees everything, in tokens


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
    ) -> tuple[Float[Array, "B T D"], KeysValues]:
        """One layer; `layer` holds its rotary frequencies and magnitude, its window and number."""
        config = self.config
        frequencies, magnitude, window, number = layer
        cached = None if cache is None else read_cache(cache, number)
        normed = RmsNorm(config, name="attention_norm")(x)
        attention = Attention(config, name="attention")
        mixed, new = attention(normed, positions, frequencies, window, cached, magnitude)
        if config.post_norms:
            mixed = RmsNorm(config, name="attention_post_norm")(mixed)
        x = x + mixed
        mixed = GatedMlp(config, name="mlp")(RmsNorm(config, name="mlp_norm")(x))
        if config.post_norms:
            mixed = RmsNorm(config, name="mlp_post_norm")(mixed)
        return with_logical_constraint(x + mixed, ("batch", "length", "embed_out")), new


def rematerialised(config: ModelConfig) -> type[nn.Module]:
    """Block under the named policy of what its backward pass recomputes."""
    if config.remat == "none":
        return Block
    policies = {
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    return nn.remat(Block, policy=policies[config.remat], prevent_cse=False)


class Decoder(nn.Module):
    """Token ids in, hidden states out."""

    config: ModelConfig

    def setup(self):
        """Makes the embedding, the stacked blocks and the last norm."""
        config = self.config
        shape = (config.vocab_size, config.width)
        self.embedding = weight(self, "embedding", shape, ("vocab", "embed"), config.width)
        if not config.tied_embeddings:
            self.unembedding = weight(self, "unembedding", shape, ("vocab", "embed"), config.width)
        per_layer: Any = (nn.broadcast, 0, nn.broadcast)  # positions, layer, cache
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
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Hidden states of a block of tokens, and the block's own keys and values.

        Args:
          positions: tokens since the row began; consecutive within a block.
          cache: what came before the block; slots from the block's first position on
            are ignored, whatever they hold.
        """
        config = self.config
        dtype = jnp.dtype(config.dtype)
        # The lookup keeps the table's split of the width and leaves rows whole; only then are
        # rows split. Asking for both at once makes the partitioner gather the table.
        tokens = with_logical_constraint(tokens, ("lookup_batch", "length"))
        x = self.embedding.astype(dtype)[tokens]
        x = with_logical_constraint(x, ("lookup_batch", "length", "embed"))
        if config.embedding_scale:
            x = x * jnp.asarray(config.width**0.5, dtype)
        x = with_logical_constraint(x, ("batch", "length", "embed_out"))
        windows = jnp.where(jnp.asarray(config.is_local), config.window or FAR, FAR)
        rotations = (layer_frequencies(config), layer_magnitudes(config))
        layers = (*rotations, windows, jnp.arange(config.layers))
        x, (keys, values) = self.blocks(x, positions, layers, cache)
        return self.final_norm(x), Cache(keys=keys, values=values)

    def output_table(self) -> Float[Array, "V D"]:
        """The unembedding, split as logits need it: by vocabulary."""
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
) -> tuple[Float[Array, "B T D"], Cache]:
    """Decoder.__call__ as a pure function of its parameters."""
    result = decoder.apply({"params": params}, tokens, positions, cache)
    return cast(tuple[Array, Cache], result)


def output_table(decoder: Decoder, params: Params) -> Float[Array, "V D"]:
    """Decoder.output_table as a pure function of its parameters."""
    return cast(Array, decoder.apply({"params": params}, method="output_table"))


def vocabulary_logits(
    config: ModelConfig, table: Float[Array, "V D"], hidden: Float[Array, "B ... D"]
) -> Float[Array, "B ... V"]:
    """Next-token logits in float32.

    Args:
      table: of `output_table`, made once where many chunks or steps need it.
    """
    between = (None,) * (hidden.ndim - 2)
    hidden = with_logical_constraint(hidden, ("logit_batch", *between, "embed_out"))
    logits = product("...D,VD->...V", hidden, table.astype(hidden.dtype), jnp.float32)
    logits = with_logical_constraint(logits, ("logit_batch", *between, "vocab_out"))
    return soft_cap(logits, config.logit_cap)


def compute_params(config: ModelConfig, params: Params) -> Params:
    """Parameters in the type that the decoder casts them to before it uses them.

    Norm scales stay in float32, as the decoder uses them; so nothing is computed otherwise
    than from the parameters themselves.
    """

    def cast_one(path: tuple, leaf: Array) -> Array:
        keep = jax.tree_util.keystr(path[-1:], simple=True) == "scale"
        return leaf if keep else leaf.astype(jnp.dtype(config.dtype))

    return jax.tree_util.tree_map_with_path(cast_one, params)


def read_cache(cache: Cache, layer: Int[Array, ""]) -> Cached:
    """A layer's keys and values in the slots in sight.

    One slice over layers and slots: the TPU compiler takes it into the product that reads it,
    and reads nothing else. Of two slices, one after the other, it makes a copy.
    """
    _, rows, heads, slots, size = cache.keys.shape
    shape = (1, rows, heads, cache.attended_slots or slots, size)
    keys, values = (
        jax.lax.dynamic_slice(x, (layer, 0, 0, 0, 0), shape)[0] for x in (cache.keys, cache.values)
    )
    return keys, values


def write_cache(cache: Cache, new: Cache, start: Int[Array, "B"]) -> Cache:
    """Writes a block's keys and values at each row's own position, all layers at once.

    A row-wise dynamic_update_slice: in place where the cache is donated or carried.
    """

    def write_row(row: Array, block: Array, at: Array) -> Array:
        return jax.lax.dynamic_update_slice(row, block, (0, 0, at, 0))  # L K S H

    write = jax.vmap(write_row, in_axes=(1, 1, 0), out_axes=1)
    return cache.replace(
        keys=write(cache.keys, new.keys, start), values=write(cache.values, new.values, start)
    )


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters, counted by shape without making any."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens, tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(shapes)))
