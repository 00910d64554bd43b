"""Pytrees that cross a module border.

The row is the one picture to keep in mind. A dialogue is contiguous; the stop
token `#` belongs to the turn that it ends, the instruction to nobody:

    tokens   x x x x y y y # i i i i y y y y # . . .
    turn     0 0 0 0 1 1 1 1 0 0 0 0 2 2 2 2 2 0 0 0
             prompt  turn 1  instr.  turn 2    padding
                                               ^ length

Row b of B = P * G belongs to problem b // G and is its sample b % G. No mask is
ever inferred from a token's id: the stop token's id may also stand in the padding.

Dimensions: P problems, G samples per problem, B rows, T tokens of a row, R turns,
D width, N query heads, K key/value heads, H head width, F feed-forward, L layers,
V vocabulary, S slots of the key/value cache.
"""

from typing import Any

from flax import struct
from jaxtyping import Array, Bool, Float, Int

Params = Any  # the "params" collection of model.decoder.Decoder


class Prompts(struct.PyTreeNode):
    """Encoded problems, right-padded."""

    tokens: Int[Array, "P T0"]
    length: Int[Array, "P"]
    draw: Int[Array, "P"]  # ordinal in the run's stream; sampling keys are folded from it


class Episodes(struct.PyTreeNode):
    """Sampled dialogues; what sampler, learner and evaluator share."""

    tokens: Int[Array, "B T"]
    length: Int[Array, "B"]
    turn: Int[Array, "B T"]  # 0: not the policy's; 1..R: the turn that the token belongs to
    logprobs: Float[Array, "B T"]  # nats, of the policy at temperature 1; 0 where turn is 0
    truncated: Bool[Array, "B R"]  # the turn was cut at its length limit
    draw: Int[Array, "B"]  # ordinal of the row's problem in the run's stream
    rewards: Float[Array, "B R"]  # 0 until graded


class Cache(struct.PyTreeNode):
    """Keys and values of a dialogue; a token's slot is its position in the row."""

    keys: Float[Array, "L B K S H"]
    values: Float[Array, "L B K S H"]
    # Attention reads only this many slots, from the first; None: all of them.
    attended_slots: int | None = struct.field(pytree_node=False, default=None)


class Scores(struct.PyTreeNode):
    """Scores of sampled dialogues under the fixed reference model."""

    logprobs: Float[Array, "B T"]  # nats; 0 where turn is 0
    hidden: Float[Array, "B T D"] | None  # kept for the exact KL only


class TokenScores(struct.PyTreeNode):
    """A model's scores of the policy's tokens; 0 at all other tokens."""

    logprobs: Float[Array, "B T"]  # nats
    entropy: Float[Array, "B T"]  # nats
    kl: Float[Array, "B T"]  # exact KL to the reference in nats, 0 without one


class Batch(struct.PyTreeNode):
    """Rows with everything that their loss needs."""

    episodes: Episodes
    scores: Scores
    advantages: Float[Array, "B T"]
    weights: Float[Array, "B T"]
    # Nats, of the learner before the first of several updates; None: there is only one update,
    # and the loss takes its own values.
    logprobs: Float[Array, "B T"] | None = None


class TrainState(struct.PyTreeNode):
    """Everything that an update changes; the reference parameters are not part of it."""

    step: Int[Array, ""]  # rollouts learnt from
    params: Params
    opt_state: Any
    baseline: Float[Array, "R"]  # decaying average of each turn's return, from 0; see running_mean
