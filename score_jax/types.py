"""Pytrees that cross a module border.

The row is the one picture to keep in mind. A dialogue is contiguous; the stop
token `#` belongs to the turn that it ends, the instruction to nobody. Here the
first attempt was given (by another model, or drawn earlier), the second drawn:

    tokens   x x x x y y y # i i i i y y y y # . . .
    turn     0 0 0 0 1 1 1 1 0 0 0 0 2 2 2 2 2 0 0 0    whose turn
    sampled  . . . . . . . . . . . . s s s s s . . .    the policy drew it
    trained  . . . . . . . . . . . . t t t t t . . .    it carries loss
             prompt  turn 1  instr.  turn 2    padding
                                               ^ length

No mask is ever inferred from a token's id: the stop token's id may also stand in
the padding. A row carries its own ids, so rows may come in any order and number.

Dimensions: P prompts, B rows, T tokens of a row, R turns, I tokens between two
turns, D width, N query heads, K key/value heads, H head width, F feed-forward,
L layers, V vocabulary, S slots of the key/value cache.
"""

from typing import Any

from flax import struct
from jaxtyping import Array, Bool, Float, Int

Params = Any  # the "params" collection of model.decoder.Decoder


class Ids(struct.PyTreeNode):
    """Who a row is. Sampling keys are folded from draw, sample and attempt."""

    problem: Int[Array, "B"]  # index in the data set
    draw: Int[Array, "B"]  # ordinal in the run's stream; one problem may be drawn again
    sample: Int[Array, "B"]  # number of the dialogue among those of its draw
    attempt: Int[Array, "B"]  # the sample whose first attempt it shares; 0 where that was given
    policy_step: Int[Array, "B"]  # updates of the policy that drew it


class Prompts(struct.PyTreeNode):
    """What a plan's rows begin with and what is put between their turns; right-padded."""

    tokens: Int[Array, "P T0"]  # the prompt, and given turns with the instructions behind them
    turn: Int[Array, "P T0"]  # of given tokens; else 0
    length: Int[Array, "P"]
    # Before turn r of those that are drawn: a stop token, which only a turn that was cut needs,
    # then what follows it. `forced_turn` is 0 but for the tokens of turns that are forced.
    forced: Int[Array, "P R I"]
    forced_turn: Int[Array, "P R I"]
    forced_length: Int[Array, "P R"]
    present: Bool[Array, "P R"]  # the dialogue has this turn
    drawn: Bool[Array, "P R"]  # the policy draws it
    trained: Bool[Array, "P R"]  # its tokens carry loss
    ids: Ids  # `sample` is that of the first row
    # Tokens of each turn of each of a prompt's G dialogues, none above the plan's limits; None:
    # those, for all. The sampler's own rows hold "B R" here.
    turn_limits: Int[Array, "P G R"] | None = None


class Effort(struct.PyTreeNode):
    """What drawing a row took, for measuring the sampler."""

    computed: Int[Array, "B"]  # positions that passed through the model, useful or not, in turns
    drafted: Int[Array, "B"]  # iterations in which its tokens were guessed
    accepted: Int[Array, "B"]  # guesses that were drawn


class Episodes(struct.PyTreeNode):
    """Dialogues; what sampler, learner, store and evaluator share."""

    tokens: Int[Array, "B T"]
    length: Int[Array, "B"]
    turn: Int[Array, "B T"]  # 1..R: the turn that the token belongs to; 0: nobody's
    sampled: Bool[Array, "B T"]  # the policy drew it
    trained: Bool[Array, "B T"]  # it carries loss
    logprobs: Float[Array, "B T"]  # nats, of the policy at temperature 1; 0 where not sampled
    present: Bool[Array, "B R"]  # the dialogue has this turn; none: the row pads a batch
    truncated: Bool[Array, "B R"]  # the turn was cut at its length limit
    rewards: Float[Array, "B R"]  # 0 until graded
    ids: Ids
    # Added to the returns of turns, no part of their rewards (a penalty for repetition, say).
    shaping: Float[Array, "B R"] | None = None
    effort: Effort | None = None  # None: not drawn by the sampling program


class Cache(struct.PyTreeNode):
    """Keys and values of tokens, an array for each group of layers (model.decoder.split_layers).

    C divides B: the rows of a batch share a cache in groups of B / C. Keys and values may have more
    rows and slots than positions: the first rows of each shard, and the first slots, are read.
    """

    keys: tuple[Float[Array, "L C K S H"], ...]
    values: tuple[Float[Array, "L C K S H"], ...]
    positions: Int[Array, "C S"]  # of the token in each slot; negative: the slot is empty
    shards: int = struct.field(pytree_node=False, default=1)  # Z, parts of the rows


class Scores(struct.PyTreeNode):
    """Scores of dialogues under the fixed reference model."""

    logprobs: Float[Array, "B T"]  # nats; 0 where neither sampled nor trained
    hidden: Float[Array, "B T D"] | None  # kept for the exact KL only


class TokenScores(struct.PyTreeNode):
    """A model's scores of sampled and trained tokens; 0 at all other tokens."""

    logprobs: Float[Array, "B T"]  # nats
    entropy: Float[Array, "B T"]  # nats
    kl: Float[Array, "B T"]  # exact KL to the reference in nats, 0 without one


class Batch(struct.PyTreeNode):
    """Rows with everything that their loss needs."""

    episodes: Episodes
    advantages: Float[Array, "B T"]
    weights: Float[Array, "B T"]  # of the token losses in the batch's one sum
    beta: Float[Array, "B T"]  # of the token KL losses, relative to `weights`
    scores: Scores | None = None  # None: no KL
    # Nats, of the learner before the first of several updates; None: there is only one update,
    # and the loss takes its own values.
    logprobs: Float[Array, "B T"] | None = None


class Coefficients(struct.PyTreeNode):
    """What the next update weighs its terms with, and the averages that move it."""

    alpha: Float[Array, ""]  # progress bonus, in rewards
    beta: Float[Array, "R"]  # reward per nat of KL(policy || reference)
    kl: Float[Array, "R"]  # decaying average of each turn's KL in nats, from 0
    gain: Float[Array, ""]  # decaying average of the last turn's return, in absolute value, from 0


class TrainState(struct.PyTreeNode):
    """Everything that an update changes; the reference parameters are not part of it."""

    step: Int[Array, ""]  # rollouts learnt from
    params: Params
    opt_state: Any
    baseline: Float[Array, "R"]  # decaying average of each turn's return, from 0; see running_mean
    coefficients: Coefficients
