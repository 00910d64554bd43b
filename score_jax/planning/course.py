"""How a step's programs run for dialogues of given lengths: what their texts leave to data.

A compiled program does not say how often a loop runs that ends when all rows have, nor how often
a branch is taken that is skipped where no row needs it. Both follow from lengths alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from score_jax.rl.dialogue import DialoguePlan, given_rows
from score_jax.rl.learner import Learner, logits_chunks
from score_jax.rl.packing import pack, packed_episodes, places_of, split_rows
from score_jax.types import Episodes


@dataclass(frozen=True, kw_only=True)
class Course:
    """How often the parts of a program run whose number depends on data."""

    # Iterations of each such loop, in program order: one number for each time that the loop, or
    # the conditional that holds it, is reached. (): every loop runs once.
    loops: Sequence[Sequence[float]] = ()
    # Of the layers that are whole and local, where a conditional chooses between two kernels.
    kernels: Sequence[float] = ()
    chunks: float = 1.0  # share of all other conditionals that take their last branch: logits
    times: float = 1.0  # runs of the program in a step


UNKNOWN = Course()


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of a step's dialogues."""

    opening: Int[np.ndarray, "B"]  # before the first drawn turn
    turns: Int[np.ndarray, "B R"]  # 0 for turns that are not drawn
    between: int  # before each later drawn turn
    width: int  # T, of a row

    @property
    def appended(self) -> Int[np.ndarray, "B"]:
        """Tokens behind the opening."""
        return self.turns.sum(1) + self.between * (np.count_nonzero(self.turns, axis=1) - 1)

    @property
    def whole(self) -> Int[np.ndarray, "B"]:
        """Tokens of the dialogues."""
        return self.opening + self.appended

    @property
    def drawn(self) -> Bool[np.ndarray, "B T"]:
        """Which tokens of rows are drawn."""
        at, start = np.arange(self.width), self.opening[:, None]
        found = np.zeros((len(self.turns), self.width), bool)
        for length in self.turns.T[..., None]:
            found |= (at >= start) & (at < start + length)
            start = np.where(length > 0, start + length + self.between, start)
        return found

    def episodes(self) -> Episodes:
        """Rows of these lengths, of nothing but zeros; all that is drawn is scored."""
        zeros = np.zeros(self.drawn.shape, np.int32)
        return given_rows(zeros, self.whole, zeros, self.drawn, turns=self.turns.shape[1])


def cut_lengths(
    plan: DialoguePlan,
    turns: Int[np.ndarray, "B R"],
    opening: Int[np.ndarray, "B"],
    *,
    block: int,
    width: int,
) -> Lengths:
    """The lengths of dialogues of a plan: turns that it draws, as far as rows have room."""
    room, kept = width - opening, np.zeros_like(turns)
    for turn in plan.drawn:
        kept[:, turn - 1] = np.clip(turns[:, turn - 1], 0, np.maximum(room, 0))
        room = room - kept[:, turn - 1] - block
    return Lengths(opening=opening, turns=kept, between=block, width=width)


def learner_course(learner: Learner, episodes: Episodes, *, updates: int) -> tuple[list, float]:
    """Microbatches of a pass over rows in so many parts, and the share of chunks with logits.

    Args:
      updates: minibatches, each of which is packed by itself; 1: all rows are.

    Returns:
      The microbatches of each minibatch, none if rows are not packed.
    """
    config = learner.config
    parts = config.microbatches * (config.minibatches // updates)
    counts, taken, chunks = [], 0, 0
    for index in range(updates):
        rows = jax.tree.map(lambda x, index=index: x[index], split_rows(episodes, updates))
        most, size, chunk = (packed if config.pack else padded)(learner, rows, parts)
        counts.append(len(most))
        taken += int(np.sum(-(-most // chunk)))
        chunks += len(most) * -(-size // chunk)
    return counts if config.pack else [], taken / chunks


def packed(learner: Learner, rows: Episodes, parts: int) -> tuple[np.ndarray, int, int]:
    """Scored tokens of each microbatch on its fullest shard, positions there and of a chunk."""
    packing = pack(rows, shards=learner.row_shards, microbatches=parts)

    def scored(index: jax.Array) -> jax.Array:
        return packed_episodes(places_of(packing, index), rows).trained.sum(1).max()

    most = jax.lax.map(scored, jnp.arange(int(packing.microbatches)))
    size = packing.rows * packing.width
    _, chunk, _ = logits_chunks(learner, learner.row_shards, size, packing.rows)
    return np.asarray(most), size, chunk


def padded(learner: Learner, rows: Episodes, parts: int) -> tuple[np.ndarray, int, int]:
    """The same where every row is a dialogue, of its fullest row."""
    split = split_rows(rows.trained, parts)
    size, chunk, _ = logits_chunks(learner, split.shape[1], split.shape[2], None)
    return np.asarray(split.sum(2).max(1)), size, chunk
