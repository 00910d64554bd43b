"""What a measured step has done: tokens, row-steps, and the least operations and bytes for them.

Work is counted from the lengths of the dialogues and the model's shape, never from what a program
executes: padding, rows that wait and recomputation take time and are no work.
"""

from dataclasses import dataclass

import numpy as np

from score_jax.model.config import ModelConfig
from score_jax.planning.flops import forward_flops, matrix_parameters
from score_jax.types import Episodes

FLOAT = 4  # bytes of float32, in which gradients and the optimiser's state are kept


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """Tokens of a step's dialogues."""

    rows: int
    prompt: int  # tokens that are prefilled, once a problem
    drawn: int  # by the policy
    appended: int  # drawn or forced
    whole: int  # of the dialogues, prompts included
    row_steps: int  # positions that passed through the sampling loops, useful or not
    most_drawn: int  # in one row
    guessed: int  # tokens that drafts proposed
    accepted: int  # of them
    appended_attended: int  # earlier tokens and itself, summed over appended tokens
    whole_attended: int  # the same over all tokens

    @property
    def shares(self) -> dict[str, float]:
        """How much of what the sampling loops do is work, and how many guesses are right."""
        found = {"useful row-steps": self.appended / self.row_steps}
        return found | ({"draft acceptance": self.accepted / self.guessed} if self.guessed else {})


def count_step(episodes: Episodes, openings: np.ndarray, draft_tokens: int = 0) -> StepCounts:
    """Counts the tokens of a rollout; arrays are numpy.

    Args:
      episodes: of the sampling program.
      openings: tokens that each problem's rows begin with, i32[P].
      draft_tokens: of a draft, as sampled.
    """
    effort = episodes.effort
    assert effort is not None, "the sampling program says what it took"
    length = np.asarray(episodes.length, np.int64)
    opening = np.repeat(openings, len(length) // len(openings)).astype(np.int64)
    appended = length - opening

    def attended(tokens: np.ndarray) -> int:
        return int((tokens * (tokens + 1) // 2).sum())

    return StepCounts(
        rows=len(length),
        prompt=int(openings.sum()),
        drawn=int(np.sum(episodes.sampled)),
        appended=int(appended.sum()),
        whole=int(length.sum()),
        row_steps=int(np.sum(effort.computed)),
        guessed=draft_tokens * int(np.sum(effort.drafted)),
        accepted=int(np.sum(effort.accepted)),
        most_drawn=int(np.sum(episodes.sampled, axis=1).max()),
        appended_attended=attended(length) - attended(opening),
        whole_attended=attended(length),
    )


def learner_flops(config: ModelConfig, counts: StepCounts) -> dict[str, float]:
    """Operations of the reference's forward pass, and of the update's forward and backward pass."""
    attended = counts.whole_attended / counts.whole
    once = forward_flops(config, counts.whole, attended, counts.drawn)
    return {"score": once, "update": 3 * once}


def decode_flops(config: ModelConfig, counts: StepCounts) -> float:
    """Operations of decoding; forced tokens need no logits."""
    attended = counts.appended_attended / counts.appended
    return forward_flops(config, counts.appended, attended, counts.drawn)


def decode_bytes(config: ModelConfig, counts: StepCounts) -> float:
    """Bytes that decoding one token at a time reads at least.

    All weights for every token that the longest row draws, since forced tokens can pass together;
    for each token its row's cache.
    """
    size = 2 if config.dtype == "bfloat16" else FLOAT
    weights = matrix_parameters(config) + config.vocab_size * config.width
    cached = 2 * config.layers * config.kv_heads * config.head_dim  # numbers of a token
    return size * (counts.most_drawn * weights + counts.appended_attended * cached)


def learner_bytes(
    config: ModelConfig, *, parameters: int, trained: int, microbatches: int
) -> dict[str, float]:
    """Bytes of parameters, gradients and optimiser state that scores and update move at least.

    Activations are left out: how much of them reaches memory is the compiler's choice.

    Args:
      parameters: of the whole model.
      trained: of them or of the adapter, those that are trained.
      microbatches: of an update, over all minibatches.
    """
    size = 2 if config.dtype == "bfloat16" else FLOAT
    score = microbatches * size * parameters
    # A microbatch reads the weights forward and backward, reads and writes the gradient; Adam
    # reads gradient, weights and two moments, and writes all but the gradient.
    update = 2 * score + FLOAT * trained * (2 * microbatches + 7)
    return {"score": score, "update": update}
