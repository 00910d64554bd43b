"""The random key of every sampled token.

A key is folded from

    run seed, purpose, stage, round, draw, sample, turn, position

and from nothing else. `draw` counts the problems that a run has asked since its first
stage began, so a problem that comes again, in a later stage or twice in one batch, is
another draw. `sample` is the dialogue's number among those of its draw, `position` the
token's place in its dialogue (as RoPE counts, never a slot of the cache). So a dialogue
does not depend on the batch, the host, the device or the path by which it is drawn.
Dialogues that branch off one first attempt share that turn's keys and no others.
"""

import zlib
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from score_jax.types import Ids

# What dialogues are drawn for; two purposes draw different tokens where all else is equal.
Purpose = Literal["train", "evaluate", "collect", "ask"]


# Jitted with static arguments, so that no step transfers them to the device.
@partial(jax.jit, static_argnames=("seed", "purpose", "stage", "round"))
def run_key(seed: int, purpose: Purpose, *, stage: str = "", round: int = 0) -> Key[Array, ""]:
    """The key that a stage's draws are folded from.

    Args:
      seed: of the run, or of its evaluation.
      stage: name of the stage that is trained on the draws; "" where several models are
        compared on the same random numbers.
      round: number of the round, where stages alternate.
    """
    key = jax.random.key(seed)
    for word in (purpose, stage):
        key = jax.random.fold_in(key, zlib.crc32(word.encode()))
    return jax.random.fold_in(key, round)


def row_keys(key: Key[Array, ""], ids: Ids) -> tuple[Key[Array, "B"], Key[Array, "B"]]:
    """Keys of each row's first attempt and of its later ones.

    Args:
      key: of `run_key`.
    """

    def fold(draw: Array, sample: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(key, draw), sample)

    return jax.vmap(fold)(ids.draw, ids.attempt), jax.vmap(fold)(ids.draw, ids.sample)


def turn_keys(
    first: Key[Array, "B"], own: Key[Array, "B"], turn: Int[Array, ""]
) -> Key[Array, "B"]:
    """Keys of a turn, from 1, of each row.

    Args:
      first, own: of `row_keys`.
    """
    keys = jax.tree.map(partial(jnp.where, turn == 1), first, own)
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, turn)


def token_keys(turn: Key[Array, "B"], position: Int[Array, "B"]) -> Key[Array, "B"]:
    """Keys of tokens at given positions of their dialogues.

    Args:
      turn: of `turn_keys`.
    """
    return jax.vmap(jax.random.fold_in)(turn, position)
