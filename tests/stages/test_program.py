"""A rollout's two programs, whose second runs once a turn, against all turns in one function."""

from functools import partial

import jax
import numpy as np
import pytest

from score_jax.rl.keys import run_key
from score_jax.rl.sampling import sample_dialogues
from score_jax.stages.build import build, load_reference
from score_jax.stages.problem_sets import read, training_spec
from score_jax.stages.program import Program
from tests.stage_configs import stages


def drawn(**fields):
    """The stage's sampling programs, what they take, and the dialogues after each turn."""
    programs = build(stages(**fields)[-1].settings, jax.devices()[:1])
    tasks, problems = read(training_spec(programs.settings))
    encoder = programs.rollout_programs(tasks).encoder
    prompts = programs.to_global(encoder.prompts(problems[:4], np.arange(4)))
    sample = programs.sample(programs.settings.sampling, programs.settings.plan)
    taken = programs.for_sampling(load_reference(programs)), prompts, run_key(3, "train")
    return sample, taken, [jax.device_get(rows) for rows in sample.by_turn(*taken)]


FORCED = {  # the second of three turns is put in the policy's mouth
    "objective__reward_weights": (1.0, 0.0, 1.0),
    "objective__beta": (0.1, 0.0, 0.1),
    "dialogue__sources": ("sampled", "forced", "sampled"),
    "dialogue__texts": ("", "7", ""),
}
CASES = {"two turns": {}, "drafts": {"sampling__draft_tokens": 3}, "a forced turn": FORCED}


@pytest.mark.parametrize("case", CASES)
def test_all_turns_are_those_that_one_function_draws(case):
    sample, taken, found = drawn(**CASES[case])
    drawing = sample.drawing
    whole = partial(
        sample_dialogues,
        drawing.decoder,
        plan=drawing.plan,
        stops=drawing.stops,
        config=drawing.config,
    )
    together = jax.device_get(Program(jax.jit(whole), sample.mesh, sample.decode.rules)(*taken))
    assert len(found) == 2 and together.sampled.sum() > 20
    for name in ("tokens", "turn", "length", "truncated", "sampled", "trained"):
        np.testing.assert_array_equal(getattr(found[-1], name), getattr(together, name))
    np.testing.assert_allclose(found[-1].logprobs, together.logprobs, atol=1e-5)
    np.testing.assert_array_equal(jax.device_get(sample(*taken)).tokens, together.tokens)


@pytest.mark.parametrize("case", CASES)
def test_after_a_turn_that_turn_is_as_it_stays_and_no_later_one_has_begun(case):
    _, _, (first, whole) = drawn(**CASES[case])
    own, later = whole.turn == 1, whole.turn >= 2
    assert own.any() and later.any() and first.turn.max() == 1
    np.testing.assert_array_equal(first.turn == 1, own)
    np.testing.assert_array_equal(first.tokens[own], whole.tokens[own])
    np.testing.assert_array_equal(first.truncated[:, 0], whole.truncated[:, 0])
    assert not first.logprobs[later].any()


@pytest.mark.parametrize("turns", [1, 3])
def test_there_is_one_program_for_all_turns(turns):
    per_turn = {"objective__reward_weights": (1.0,) * turns, "objective__beta": (0.1,) * turns}
    sample, _, found = drawn(**per_turn)
    assert len(found) == turns and sample.decode.jitted._cache_size() == 1
