"""No buffer of the compiled programs holds a vocabulary row for every token.

The sizes are chosen so that one would stand out: the vocabulary is a prime, and
[B T V] outweighs everything else by far.
"""

import dataclasses
import math
import re
from functools import partial

import jax
import optax
import pytest

from score_jax.model.decoder import Decoder
from score_jax.rl import learner
from score_jax.rl.dialogue import DialoguePlan
from score_jax.rl.learner import LearnerConfig
from score_jax.rl.objectives import Objective
from score_jax.rl.sampling import sample_dialogues
from score_jax.rl.sampling_plan import SamplingConfig
from tests.tiny import MODEL, grouped, prompts_of, random_params, rows_of

VOCABULARY = 3001
CONFIG = dataclasses.replace(MODEL, layers=1, vocab_size=VOCABULARY)
ROWS, LIMIT, PROMPT = 4, 32, 6
LINE = ([1] * PROMPT + [2] * LIMIT + [0, 3] + [4] * LIMIT, [0] * PROMPT + [1] * LIMIT + [0, 0])
PLAN = DialoguePlan().complete(2, LIMIT)
ALL = ROWS * 2 * LIMIT * VOCABULARY  # numbers in [B T V], policy tokens only


def compiled_update(logits_chunk, microbatches=1):
    """The update with exact KL, which needs two vocabulary rows per token."""
    options = learner.Learner(
        decoder=Decoder(CONFIG),
        optimizer=optax.adam(1e-3),
        max_tokens=2 * LIMIT,
        config=LearnerConfig(logits_chunk=logits_chunk, microbatches=microbatches, pack=False),
    )
    value = Objective(reward_weights=(1.0, 1.0), beta=(0.1, 0.1))

    def go(params, reference, rows):
        scores = learner.score_episodes(options, reference, rows, keep_hidden=True)
        state = learner.begin(options, params, value)
        return learner.update(options, state, reference, rows, scores, plan=PLAN, objective=value)

    params = random_params(CONFIG)
    line = (LINE[0], LINE[1] + [2] * LIMIT)
    rows = rows_of([line] * ROWS, 2, ids=grouped(ROWS, 2))
    return jax.jit(go).lower(params, params, rows).compile()


def largest_with_vocabulary(compiled):
    """Numbers in the largest array of the program that has a vocabulary dimension."""
    shapes = re.findall(r"(?:f32|bf16|f16|s32|pred)\[([\d,]+)\]", compiled.as_text())
    sizes = [[int(n) for n in shape.split(",")] for shape in set(shapes)]
    return max(math.prod(size) for size in sizes if any(n % VOCABULARY == 0 for n in size))


@pytest.mark.slow
@pytest.mark.parametrize("logits_chunk", [4])
def test_the_update_never_holds_the_vocabulary_for_every_token(logits_chunk, monkeypatch):
    monkeypatch.setattr(learner, "LOGITS_BYTES", 4 * ALL - 1)  # not all fit
    compiled = compiled_update(logits_chunk)
    share = 2 * LIMIT // logits_chunk
    assert largest_with_vocabulary(compiled) <= max(ALL // share, VOCABULARY * CONFIG.width)
    # Neither does it keep all chunks for the backward pass.
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * ALL


@pytest.mark.slow
def test_where_all_logits_fit_they_are_kept(monkeypatch):
    """With one byte more of room than above."""
    monkeypatch.setattr(learner, "LOGITS_BYTES", 4 * ALL)
    assert compiled_update(4).memory_analysis().temp_size_in_bytes > 4 * ALL


@pytest.mark.slow
def test_the_measure_sees_such_a_buffer():
    """With one chunk for all tokens it is there: the test above can fail."""
    compiled = compiled_update(2 * LIMIT)
    assert largest_with_vocabulary(compiled) >= ALL
    assert compiled.memory_analysis().temp_size_in_bytes > 4 * ALL


@pytest.mark.slow
def test_sampling_expands_one_token_per_row():
    prompts = prompts_of([[1] * PROMPT] * 2, plan=PLAN, instructions=[[(), (3,)]] * 2)
    draw = partial(
        sample_dialogues,
        Decoder(CONFIG),
        plan=PLAN,
        stops=(0,),
        config=SamplingConfig(group_size=2, prompt_limit=PROMPT, turn_limit=LIMIT),
    )
    compiled = jax.jit(draw).lower(random_params(CONFIG), prompts, jax.random.key(0)).compile()
    assert largest_with_vocabulary(compiled) == max(ROWS, CONFIG.width) * VOCABULARY
