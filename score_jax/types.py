"""Pytrees that cross a module border.

The row is the one picture to keep in mind. A dialogue is contiguous; the stop
token `#` belongs to the turn that it ends, the instruction to nobody:

    tokens   x x x x y y y # i i i i y y y y # . . .
    turn     0 0 0 0 1 1 1 1 0 0 0 0 2 2 2 2 2 0 0 0
             prompt  turn 1  instr.  turn 2    padding
                                               ^ length

Row b of B = P * G belongs to problem b // G and is its sample b % G. No mask is
ever inferred from a token's id: padding may equal the stop token.

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
    # The first slots, that are all a block may need to look at; None: all there are.
    attended_slots: int | None = struct.field(pytree_node=False, default=None)


class Scores(struct.PyTreeNode):
    """What the fixed reference model says of sampled dialogues."""

    logprobs: Float[Array, "B T"]  # nats; 0 where turn is 0
    hidden: Float[Array, "B T D"] | None  # kept for the exact KL only


class TokenScores(struct.PyTreeNode):
    """What a model says of the policy's tokens; 0 elsewhere."""

    logprobs: Float[Array, "B T"]  # nats
    entropy: Float[Array, "B T"]  # nats
    kl: Float[Array, "B T"]  # exact KL to the reference in nats, 0 without one


class Batch(struct.PyTreeNode):
    """Rows with all that their loss needs."""

    episodes: Episodes
    scores: Scores
    advantages: Float[Array, "B T"]
    weights: Float[Array, "B T"]
    # The learner's own, before the first update; None: as the loss finds them, at its only one.
    logprobs: Float[Array, "B T"] | None = None


class TrainState(struct.PyTreeNode):
    """All that an update changes. The reference parameters are never part of it."""

    step: Int[Array, ""]  # rollouts learnt from
    params: Params
    opt_state: Any
    baseline: Float[Array, "R"]  # decaying average of each turn's return, from 0; see running_mean
