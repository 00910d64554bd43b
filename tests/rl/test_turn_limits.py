"""Limits of a dialogue's own turns, and rows that draw nothing."""

from functools import partial

import jax
import numpy as np

from score_jax.model.decoder import Decoder
from score_jax.rl.sampling import sample_dialogues
from tests.tiny import MODEL, PLAN, PROMPTS, SAMPLING, random_params


def drawn(prompts, stops=(-1,)):
    """Episodes of turns that no token ends."""
    run = partial(sample_dialogues, Decoder(MODEL), plan=PLAN, stops=stops, config=SAMPLING)
    return jax.device_get(jax.jit(run)(random_params(MODEL), prompts, jax.random.key(0)))


def test_each_dialogue_draws_up_to_limits_of_its_own():
    limits = np.array([[[1, 5], [3, 2], [5, 1]], [[2, 2], [4, 5], [5, 5]]], np.int32)
    episodes = drawn(PROMPTS.replace(turn_limits=limits))
    lengths = np.stack([(episodes.turn == turn).sum(1) for turn in (1, 2)], axis=1)
    assert lengths.tolist() == limits.reshape(-1, 2).tolist()
    assert episodes.truncated.all()


def test_limits_like_the_plans_change_nothing():
    limits = np.full((2, 3, 2), 5, np.int32)
    given, usual = drawn(PROMPTS.replace(turn_limits=limits), (0,)), drawn(PROMPTS, (0,))
    jax.tree.map(np.testing.assert_array_equal, given, usual)


def test_rows_that_draw_nothing_end_with_what_they_began_with():
    """The measure of prefilling alone."""
    episodes = drawn(PROMPTS.replace(drawn=np.zeros((2, 2), bool)))
    assert episodes.length.tolist() == np.repeat(PROMPTS.length, 3).tolist()
    assert not episodes.effort.computed.any()
