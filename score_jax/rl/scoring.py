"""Scores of tokens under a model: log-probability, entropy, exact KL.

They are taken at sampled and trained tokens only, a chunk of positions at a time: neither
prompt nor instruction positions are expanded, and chunks that no row fills are skipped. The
backward pass computes a chunk's logits again where all of them would take much memory: then
`[B T V]` never exists.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from score_jax.model.config import ModelConfig
from score_jax.model.decoder import (
    Decoder,
    forward,
    output_table,
    vocabulary_logits,
    vocabulary_product,
)
from score_jax.model.layers import soft_cap_slope
from score_jax.rl.logprobs import Residuals, gradient_of_scores, score_logits
from score_jax.rl.packing import Places
from score_jax.types import Episodes, Params, TokenScores

UNROLLED = 4  # chunks; more are made in a loop, whose residuals are copied into one array


def hidden_states(
    decoder: Decoder, params: Params, tokens: Int[Array, "B T"], places: Places | None = None
) -> Float[Array, "B T D"]:
    """Final hidden states of whole rows; causality makes the padding harmless.

    Args:
      places: of packed tokens, a shard's in one row; None: each row is a dialogue.
    """
    if places is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return forward(decoder, params, tokens, positions)
    rows = (x.reshape(-1, places.row.shape[-1]) for x in (tokens, places.position, places.segments))
    packed, positions, segments = rows
    hidden = forward(decoder, params, packed, positions, segments)
    return hidden.reshape(*tokens.shape, -1)


def scored_positions(
    scored: Bool[Array, "B T"], max_tokens: int, logits_chunk: int
) -> Int[Array, "C B c"]:
    """Where scored tokens stand, first to last, then other positions, in chunks.

    Args:
      max_tokens: that are scored in a row, at most.
    """
    max_tokens = min(max_tokens, scored.shape[1])
    logits_chunk = min(logits_chunk, max_tokens)
    order = jnp.argsort(~scored, axis=1, stable=True)
    chunks = -(-max_tokens // logits_chunk)
    padding = max(0, chunks * logits_chunk - order.shape[1])
    order = jnp.pad(order, ((0, 0), (0, padding)))[:, : chunks * logits_chunk]
    return order.reshape(order.shape[0], chunks, logits_chunk).swapaxes(0, 1)


class ChunkKind(NamedTuple):
    """What is fixed of a chunk's scores."""

    config: ModelConfig
    keep_logits: bool  # for the backward pass


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunk_scores(
    kind: ChunkKind,
    table: Float[Array, "V D"],
    hidden: Float[Array, "B c D"],
    reference: tuple[Float[Array, "V D"], Float[Array, "B c D"]] | None,
    tokens: Int[Array, "B c"],
    needed: Bool[Array, ""],
) -> tuple[Float[Array, "B c"], ...]:
    """`score_logits` of the tokens behind hidden states; zeros where the chunk is not needed.

    Its derivative is its own, since a branch that is derived by rule hands the whole table to its
    backward pass, a copy for every chunk.

    Args:
      reference: the reference's table and hidden states.
    """
    return chunk_forward(kind, table, hidden, reference, tokens, needed)[0]


def logits_scored(
    config: ModelConfig, table: Array, hidden: Array, reference: Any, tokens: Array
) -> tuple[Any, Residuals]:
    """`score_logits` behind hidden states."""
    logits = vocabulary_logits(config, table, hidden)
    base = None if reference is None else vocabulary_logits(config, *reference)
    return score_logits(logits, tokens, base)


def chunk_forward(kind: ChunkKind, *given: Any) -> tuple[Any, Any]:
    """The forward pass of `chunk_scores`."""
    *arrays, needed = given

    def scores() -> tuple[Any, Any]:
        found, residuals = logits_scored(kind.config, *arrays)
        return found, residuals if kind.keep_logits else None

    found, residuals = where_needed(needed, scores)
    return found, (given, residuals)


def chunk_backward(kind: ChunkKind, saved: Any, slopes: Any) -> tuple[Any, ...]:
    """The backward pass of `chunk_scores`."""
    (*arrays, needed), residuals = saved

    def gradient() -> tuple[Array, Array]:
        own = residuals if kind.keep_logits else logits_scored(kind.config, *arrays)[1]
        slope = gradient_of_scores(own, slopes)
        slope *= soft_cap_slope(own[0], kind.config.logit_cap)
        return jax.vjp(vocabulary_product, *arrays[:2])[1](slope)

    return *where_needed(needed, gradient), None, None, None


def where_needed(needed: Bool[Array, ""], function: Callable[[], Any]) -> Any:
    """What a function returns; zeros, at no cost, where it is not needed."""
    shapes = jax.eval_shape(function)

    def nothing() -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.cond(needed, function, nothing)


chunk_scores.defvjp(chunk_forward, chunk_backward)


def score_tokens(
    decoder: Decoder,
    params: Params,
    hidden: Float[Array, "B T D"],
    episodes: Episodes,
    *,
    max_tokens: int,
    logits_chunk: int,
    keep_logits: bool = False,
    reference: tuple[Params, Float[Array, "B T D"]] | None = None,
) -> TokenScores:
    """Log-probability, entropy and, with a reference, exact KL of sampled and trained tokens.

    Args:
      keep_logits: for the backward pass; False: it computes them again.
    """
    tables = [output_table(decoder, own) for own in (params, *(reference or ())[:1])]
    states = [hidden, *(reference or ())[1:]]
    scored = episodes.sampled | episodes.trained
    at = scored_positions(scored, max_tokens, logits_chunk)
    most = jnp.max(scored.sum(1))  # over all devices, which take the same branch

    def one_chunk(chunk: tuple[Array, Array]) -> tuple[Array, ...]:
        first, at = chunk
        # The token at position t is predicted by the hidden state at t - 1.
        before = [jnp.take_along_axis(x, (at - 1)[..., None], axis=1) for x in states]
        tokens = jnp.take_along_axis(episodes.tokens, at, 1)
        (own, *base) = zip(tables, before, strict=True)
        kind = ChunkKind(decoder.config, keep_logits)
        return chunk_scores(kind, *own, base[0] if base else None, tokens, first < most)

    chunks = (jnp.arange(len(at)) * at.shape[2], at)
    if len(at) <= UNROLLED:
        found = [one_chunk((first, at)) for first, at in zip(*chunks, strict=True)]
        parts = tuple(map(jnp.stack, zip(*found, strict=True)))
    else:
        parts = jax.lax.map(one_chunk, chunks)
    flat = at.swapaxes(0, 1).reshape(at.shape[1], -1)  # B C*c
    rows = jnp.arange(flat.shape[0])[:, None]

    def spread(part: Float[Array, "C B c"]) -> Float[Array, "B T"]:
        own = jnp.take_along_axis(scored, flat, axis=1)
        values = jnp.where(own, part.swapaxes(0, 1).reshape(flat.shape), 0.0)
        return jnp.zeros(scored.shape).at[rows, flat].add(values)

    return TokenScores(*(spread(part) for part in parts))
