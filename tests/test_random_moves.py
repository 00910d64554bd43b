"""Random moves have the length that is said; the shipped base policy bears them."""

import re

import numpy as np
import pytest

from benchmarks import random_moves

PARAMS = {
    "a": {"b": np.full((30, 40), 2.0, np.float32)},
    "c": np.arange(500, dtype=np.float32),
    "d": np.full((7,), -0.5, np.float32),
}


def steps(share, *, each, seed=0):
    moved = random_moves.move(PARAMS, np.random.default_rng(seed), share, each=each)
    pairs = (
        (moved["a"]["b"], PARAMS["a"]["b"]),
        (moved["c"], PARAMS["c"]),
        (moved["d"], PARAMS["d"]),
    )
    return [(np.ravel(after - before), np.ravel(before)) for after, before in pairs]


@pytest.mark.parametrize("share", [0.003, 0.012, 0.5])
def test_a_move_of_each_tensor_is_that_share_of_its_norm(share):
    for step, before in steps(share, each=True):
        assert np.linalg.norm(step) == pytest.approx(share * np.linalg.norm(before), rel=1e-3)


@pytest.mark.parametrize("share", [0.012, 0.5])
def test_a_move_of_all_is_that_share_of_the_whole_norm_and_alike_for_every_weight(share):
    found = steps(share, each=False)
    whole = np.concatenate([before for _, before in found])
    step = np.concatenate([step for step, _ in found])
    assert np.linalg.norm(step) == pytest.approx(share * np.linalg.norm(whole), rel=1e-3)
    large, small = (np.sqrt(np.mean(found[i][0] ** 2)) for i in (1, 0))
    assert large == pytest.approx(small, rel=0.15)  # though those weights are 144 times larger


def test_other_draws_are_other_directions():
    (one, _), (other, _) = steps(0.1, each=False)[0], steps(0.1, each=False, seed=1)[0]
    assert abs(one @ other) < 0.15 * np.linalg.norm(one) * np.linalg.norm(other)


@pytest.mark.slow
def test_the_shipped_base_policy_does_not_stand_in_a_narrow_optimum(capsys):
    """docs/embedded_task.md has the numbers; of those of another machine a point may be missing."""
    random_moves.main(0.012, 8)
    told = capsys.readouterr().out
    (accuracy,) = re.findall(r"836 problems: ([\d.]+)%", told)
    assert 45 <= float(accuracy) <= 60
    costs = re.findall(r"mean cost (-?[\d.]+) points", told)
    assert len(costs) == 2 and all(abs(float(cost)) < 1.2 for cost in costs)
