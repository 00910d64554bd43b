"""Lists of turn lengths: their mean, their tail, their bounds."""

import numpy as np
import pytest

from score_jax.planning.turn_lengths import realistic_lengths


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
