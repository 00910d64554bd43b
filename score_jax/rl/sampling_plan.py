"""How dialogues are drawn, and the sizes of the sampling program's loops and arrays."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from score_jax.checks import Count, Natural, NotNegative, check_fields
from score_jax.rl.dialogue import DialoguePlan

TILE = 16  # slots of the cache that a TPU reads at a time, in bfloat16
BLOCK = 16  # forced tokens that pass through the model at a time, at most
PATIENCE = 8  # iterations between two questions to all devices


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How dialogues are drawn."""

    group_size: Count = 8  # G, dialogues per problem
    second_attempts: Count = 1  # second attempts drawn from each first attempt; divides group_size
    prompt_limit: Count = 64  # tokens; longer prompts are refused
    turn_limit: Count = 64  # tokens of one turn, its stop token included
    # Further batches drawn, at most, in the place of groups without signal; 0: none.
    redraws: Natural = 0
    row_limit: Natural = 0  # tokens of a whole dialogue; 0: all that the other limits allow
    temperature: NotNegative = 1.0  # 0: greedy
    decode_segments: Count = 1  # lengths of the cache: loops, each over more of it
    row_sizes: Count = 2  # sizes of the loop's arrays: all rows, half of them, a quarter
    # Tokens guessed from the row's earlier turns and drawn in one iteration; 0: none.
    draft_tokens: Natural = 0
    # Guessing goes on while an iteration yields so many tokens per row on average.
    draft_yield: NotNegative = 1.5

    def __post_init__(self):
        check_fields(self, "sampling")
        if 0 < self.row_limit <= self.prompt_limit:
            raise ValueError(
                f"sampling.row_limit is {self.row_limit}; set more than sampling.prompt_limit "
                f"{self.prompt_limit}, or 0"
            )


def segment_slots(plan: DialoguePlan, block: int, config: SamplingConfig) -> list[int]:
    """The lengths of the cache of drawn and forced tokens: slots of each segment.

    Args:
      block: I, the tokens that may stand between two drawn turns.
    """
    limits = [plan.limits[turn - 1] for turn in plan.drawn]
    whole = sum(rounded(limit, PATIENCE) for limit in limits)
    whole += (len(limits) - 1) * rounded(math.prod(forced_blocks(block)), PATIENCE)
    ends = [whole * n // config.decode_segments for n in range(1, config.decode_segments + 1)]
    slots = [min(rounded(end, TILE), whole) for end in ends]
    # The last iterations may guess beyond the limit.
    slots[-1] += config.draft_tokens and PATIENCE * (config.draft_tokens + 1)
    return sorted(set(slots))


def rounded(size: int, unit: int) -> int:
    """The next multiple of a unit."""
    return -(-size // unit) * unit


def forced_blocks(block: int) -> tuple[int, int]:
    """The number of equal blocks in which so many forced tokens are fed, and their size."""
    slots = rounded(max(block, 1), PATIENCE)
    count = -(-slots // BLOCK)
    return count, rounded(-(-slots // count), 2)


def loop_sizes(rows: int, config: SamplingConfig) -> list[int]:
    """Rows of each loop's arrays, of so many rows in all."""
    return sorted({-(-rows // 2**n) for n in range(config.row_sizes)}, reverse=True)


def iterations_between(shards: int) -> int:
    """Iterations between two questions whether rows are still drawing."""
    return 1 if shards == 1 else PATIENCE


def loop_trips(
    plan: DialoguePlan, block: int, config: SamplingConfig, lengths: Int[np.ndarray, "Z N R"]
) -> list[list[int]]:
    """Iterations of each sampling loop, in program order: one number for each turn that is drawn.

    Drafts are taken never to be tried, since how many are accepted is not known.

    Args:
      block: I, the tokens that may stand between two drawn turns.
      lengths: tokens of each turn, of the rows of each shard.
    """
    shards, rows, _ = lengths.shape
    segments, sizes = segment_slots(plan, block, config), loop_sizes(rows, config)
    stride, kinds = iterations_between(shards), 2 if config.draft_tokens else 1
    found, slot = [], 0
    for turn in plan.drawn:
        trips = []
        if len(plan.drawn) > 1:
            count, size = forced_blocks(block)
            trips.append(count if turn != plan.drawn[0] else 0)
            slot = rounded(slot + trips[0] * size, PATIENCE)
        left = lengths[:, :, turn - 1]
        for slots in segments:
            for fewer in [*sizes[1:], 0]:
                own = 0
                while (left > 0).sum(1).max() > fewer and slot + stride <= slots:
                    left, slot, own = left - stride, slot + stride, own + 1
                trips += [0] * (kinds - 1) + [own]  # the plain loop is the last of a size's
        found.append(trips)
    return [list(trips) for trips in zip(*found, strict=True)]
