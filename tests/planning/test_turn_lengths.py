"""Lists of turn lengths: their mean, their tail, their bounds."""

import numpy as np
import pytest

from score_jax.planning.turn_lengths import fitting, given_lengths, realistic_lengths
from score_jax.stages.build import build
from score_jax.stages.problem_sets import read, training_spec
from score_jax.stages.settings import parse
from tests.tiny_stages import get_config


@pytest.mark.parametrize("limits", [(48, 48), (1024, 1024, 100)])
def test_the_mean_of_each_turn_is_35_percent_of_its_limit(limits):
    found = realistic_lengths(64, limits)
    assert found.shape == (64, len(limits)) and found.dtype == np.int32
    assert found.mean(0) == pytest.approx(0.35 * np.array(limits), abs=1)


def test_lengths_have_a_long_tail_and_end_at_the_limit():
    found = realistic_lengths(1000, (100,))[:, 0]
    assert found.min() >= 1 and found.max() == 100
    assert np.median(found) < 0.85 * found.mean()
    assert (found > 2 * found.mean()).mean() > 0.05


def test_a_list_is_drawn_once_and_its_turns_apart():
    first, again = realistic_lengths(32, (50, 50)), realistic_lengths(32, (50, 50))
    assert (first == again).all()
    assert not (first[:, 0] == first[:, 1]).all()
    assert not (first == realistic_lengths(32, (50, 50), seed=1)).all()


def test_given_lengths_are_those_of_the_list_by_problem_and_sample():
    found = given_lengths(parse(get_config("stage1")))
    assert found.shape == (4, 2, 2) and found.min() >= 1 and found.max() <= 8
    assert found.mean() == pytest.approx(0.35 * 8, abs=0.5)


def test_problems_come_again_where_there_are_too_few():
    programs = build(parse(get_config("stage1")))
    tasks, problems = read(training_spec(programs.settings))
    encoder = programs.encoder(programs.settings.plan, 12, tasks)
    found = fitting(encoder, problems[:3], 7)
    assert [p.id for p in found] == [problems[i].id for i in (0, 1, 2, 0, 1, 2, 0)]
