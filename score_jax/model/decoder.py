"""The decoder: scanned blocks over whole rows, or over a block of tokens behind caches.

The same blocks sample, score and train. They return hidden states; logits are a function of
their own, so that callers choose the positions for which they are computed.
"""

from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int

from score_jax.model.attention import Attention, KeysValues
from score_jax.model.cache import layer_part, shards_apart
from score_jax.model.config import ModelConfig
from score_jax.model.layers import (
    GatedMlp,
    RmsNorm,
    layer_frequencies,
    layer_magnitudes,
    soft_cap,
    weight,
    wide_product,
)
from score_jax.types import Cache, Params

UNLIMITED = 1 << 30  # tokens; the window of a global layer

# Keys and values of a scan's layers, the rows of each shard apart, and each slot's position.
Stacked = tuple[Float[Array, "_ Z _ K _ H"], Float[Array, "_ Z _ K _ H"], Int[Array, "_ _"]]
# A layer's rotary frequencies and magnitude, its window in tokens, and its index in the scan.
LayerInputs = tuple[Array, Array | None, Array, Array]


def layer_inputs(config: ModelConfig, begin: int, end: int) -> LayerInputs:
    """The inputs of the layers begin .. end - 1, stacked."""
    windows = jnp.where(jnp.asarray(config.is_local), config.window or UNLIMITED, UNLIMITED)
    magnitudes = layer_magnitudes(config)
    frequencies = layer_frequencies(config)[begin:end]
    magnitudes = None if magnitudes is None else magnitudes[begin:end]
    return frequencies, magnitudes, windows[begin:end], jnp.arange(end - begin)


class Block(nn.Module):
    """Attention and MLP, each on a normed copy of the residual stream."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        layer: LayerInputs,
        caches: Sequence[Stacked],
        segments: Int[Array, "B T"] | None,
    ) -> tuple[Float[Array, "B T D"], KeysValues]:
        """Applies one layer.

        Args:
          caches: of all layers of the scan, each read at this one's index.
        """
        config = self.config
        frequencies, magnitude, window, index = layer
        cached = [
            (layer_part(keys, index, at), layer_part(values, index, at), at)
            for keys, values, at in caches
        ]
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


def scanned(config: ModelConfig, layers: int) -> Any:
    """The class of `layers` blocks in a scan, called with what Block is; parameters stacked."""
    whole: Any = nn.broadcast
    per_layer: Any = (whole, 0, whole, whole)  # positions, layer, caches, segments
    return nn.scan(
        rematerialised(config),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=per_layer,
        length=layers,
        unroll=config.unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


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
        self.blocks = scanned(config, config.layers)(config)
        self.final_norm = RmsNorm(config)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states of whole rows.

        Args:
          positions: index of each token in its dialogue.
          segments: number of the dialogue that each token belongs to, where several are packed
            into one row; a token attends to its own dialogue only. None: one dialogue a row.
        """
        layers = layer_inputs(self.config, 0, self.config.layers)
        x, _ = self.blocks(self.embed(tokens), positions, layers, (), segments)
        return self.final_norm(x)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """What the first layer takes."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        # The lookup's result is sharded over the width, as the table is; only afterwards over
        # the batch. Both at once would make the partitioner all-gather the table.
        tokens = with_logical_constraint(tokens, ("lookup_batch", "length"))
        # Cast behind the lookup: so the gradients of a token's many places are summed in float32,
        # and no other rows of the table are cast.
        x = self.embedding[tokens].astype(dtype)
        x = with_logical_constraint(x, ("lookup_batch", "length", "embed"))
        if config.embedding_scale:
            x = x * jnp.asarray(config.width**0.5, dtype)
        return with_logical_constraint(x, ("batch", "length", "embed_out"))

    def normalise(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Hidden states, from what the last layer returns."""
        return self.final_norm(x)

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
    segments: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """Decoder.__call__ as a pure function of its parameters."""
    return cast(Array, decoder.apply({"params": params}, tokens, positions, segments))


def split_layers(params: Params, groups: int) -> Params:
    """Parameters with the stacked layers cut into equal groups of one array each, for `decode`.

    A scan over stacked layers slices each layer's weights out of the stack. In a loop that reads
    all weights for a few tokens, CPUs and GPUs make a copy of every slice; groups of one layer
    are read where they lie (docs/speed.md).
    """

    leaves, tree = jax.tree.flatten(params["blocks"])
    parts = zip(*(jnp.split(x, groups) for x in leaves), strict=True)
    return {**params, "blocks": tuple(map(tree.unflatten, parts))}


def decode(
    decoder: Decoder,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    caches: Sequence[Cache] = (),
) -> tuple[Float[Array, "B T D"], Cache]:
    """Hidden states of a block of tokens behind caches, and the block's own keys and values.

    Args:
      params: of the model, or of `split_layers`.
      positions: index of each token in its row; consecutive within a block.
      caches: keys and values of tokens before the block.
    """
    config, blocks = decoder.config, params["blocks"]
    blocks = blocks if isinstance(blocks, tuple) else (blocks,)
    size = config.layers // len(blocks)
    x: Any = decoder.apply({"params": params}, tokens, method="embed")
    # Groups differ in their numbers alone, so they are traced once, and stand inline.
    apply = jax.jit(scanned(config, size)(config).apply, inline=True)
    found = []
    for group, part in enumerate(blocks):
        own = [
            (*(shards_apart(x[group], cache.shards, 1) for x in (cache.keys, cache.values)), at)
            for cache, at in ((cache, cache.positions) for cache in caches)
        ]
        layers = layer_inputs(config, group * size, (group + 1) * size)
        x, new = apply({"params": part}, x, positions, layers, tuple(own), None)
        found.append(new)
    hidden: Any = decoder.apply({"params": params}, x, method="normalise")
    keys, values = zip(*found, strict=True)
    return hidden, Cache(keys=keys, values=values, positions=positions)


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
    return soft_cap(vocabulary_product(table, hidden), config.logit_cap)


def vocabulary_product(
    table: Float[Array, "V D"], hidden: Float[Array, "B ... D"]
) -> Float[Array, "B ... V"]:
    """Next-token logits in float32, before the model's cap."""
    between = (None,) * (hidden.ndim - 2)
    hidden = with_logical_constraint(hidden, ("logit_batch", *between, "embed_out"))
    rows = hidden.reshape(-1, hidden.shape[-1])  # as in layers.linear
    logits = wide_product("ND,VD->NV", rows, table.astype(hidden.dtype))
    logits = logits.reshape(*hidden.shape[:-1], -1)
    return with_logical_constraint(logits, ("logit_batch", *between, "vocab_out"))


def compute_params(config: ModelConfig, params: Params) -> Params:
    """Parameters cast to config.dtype, as the decoder casts them before use.

    Norm scales stay in float32, in which the decoder uses them; so the result of a forward
    pass is the same as with the original parameters.
    """

    def cast_one(path: tuple, leaf: Array) -> Array:
        is_scale = jax.tree_util.keystr(path[-1:], simple=True) == "scale"
        return leaf if is_scale else leaf.astype(jnp.dtype(config.dtype))

    return jax.tree_util.tree_map_with_path(cast_one, params)


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters, from their shapes; none is allocated."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens, tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(shapes)))
