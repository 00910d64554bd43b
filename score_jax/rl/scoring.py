"""Scores of tokens under a model: log-probability, entropy, exact KL.

They are taken at sampled and trained tokens only, a chunk of positions at a time: neither
prompt nor instruction positions are expanded, and chunks that no row fills are skipped. The
backward pass computes a chunk's logits again where all of them would take much memory: then
`[B T V]` never exists.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from score_jax.model.decoder import Decoder, forward, output_table, vocabulary_logits
from score_jax.rl.logprobs import score_logits
from score_jax.rl.packing import Places
from score_jax.types import Episodes, Params, TokenScores


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
    table = output_table(decoder, params)  # here, so that it is not moved for every chunk
    base = None if reference is None else (output_table(decoder, reference[0]), reference[1])

    def expand(table: Array, hidden: Array, at: Array) -> Float[Array, "B c V"]:
        # The token at position t is predicted by the hidden state at t - 1.
        before = jnp.take_along_axis(hidden, (at - 1)[..., None], axis=1)
        return vocabulary_logits(decoder.config, table, before)

    def one_chunk(table: Array, hidden: Array, at: Int[Array, "B c"]) -> tuple[Array, ...]:
        tokens = jnp.take_along_axis(episodes.tokens, at, 1)
        return score_logits(expand(table, hidden, at), tokens, base and expand(*base, at))

    scored = episodes.sampled | episodes.trained
    at = scored_positions(scored, max_tokens, logits_chunk)
    most = jnp.max(scored.sum(1))  # over all devices, which take the same branch

    def if_needed(table: Array, hidden: Array, first: Array, at: Array) -> tuple[Array, ...]:
        def skipped(*_: Array) -> tuple[Array, ...]:
            return tuple(jnp.zeros(at.shape) for _ in range(3))

        return jax.lax.cond(first < most, one_chunk, skipped, table, hidden, at)

    if not keep_logits:
        if_needed = jax.checkpoint(if_needed)
    firsts = jnp.arange(len(at)) * at.shape[2]
    parts = jax.lax.map(lambda chunk: if_needed(table, hidden, *chunk), (firsts, at))
    flat = at.swapaxes(0, 1).reshape(at.shape[1], -1)  # B C*c
    rows = jnp.arange(flat.shape[0])[:, None]

    def spread(part: Float[Array, "C B c"]) -> Float[Array, "B T"]:
        own = jnp.take_along_axis(scored, flat, axis=1)
        values = jnp.where(own, part.swapaxes(0, 1).reshape(flat.shape), 0.0)
        return jnp.zeros(scored.shape).at[rows, flat].add(values)

    return TokenScores(*(spread(part) for part in parts))
