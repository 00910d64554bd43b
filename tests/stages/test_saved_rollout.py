"""A rollout that was kept comes back as it was, for its own policy and step only."""

from dataclasses import fields

import jax
import numpy as np
import pytest

from score_jax.main import resolve_stages
from score_jax.records import Grade
from score_jax.rl.rollout import Graded, Rollout
from score_jax.stages import saved_rollout
from score_jax.stages.build import build
from score_jax.types import Episodes
from tests import tiny_stages

PARAMS = {"w": np.arange(6.0, dtype=np.float32)}
REFERENCE = {"w": np.zeros(6, np.float32)}


@pytest.fixture(scope="module")
def programs():
    return build(resolve_stages(tiny_stages.get_config(), {})[-1].settings, jax.devices()[:1])


def episodes(rows=8, length=5, turns=2):
    draws = np.random.default_rng(0)
    return Episodes(
        tokens=draws.integers(0, 9, (rows, length)).astype(np.int32),
        length=draws.integers(1, length, rows).astype(np.int32),
        turn=draws.integers(0, 3, (rows, length)).astype(np.int32),
        logprobs=draws.normal(size=(rows, length)).astype(np.float32),
        truncated=draws.integers(0, 2, (rows, turns)).astype(bool),
        draw=np.arange(rows, dtype=np.int32),
        rewards=draws.random((rows, turns)).astype(np.float32),
    )


def rollout(programs):
    local = episodes()
    grades = [
        (
            Grade(verdict="wrong", reward=0.25, extracted=None, detail=f"row {row}"),
            Grade(verdict="correct", reward=1.0, extracted="é"),
        )
        for row in range(8)
    ]
    graded = Graded(
        attempts=[(f"{row}?", f"{row}\n") for row in range(8)],
        grades=grades,
        seconds={"grade": 2.0},
    )
    return Rollout(episodes=programs.to_global(local), scores=None, local=local, graded=graded)


def read(folder, programs, step=3, params=PARAMS):
    return saved_rollout.read(folder, programs, lambda *given: given, step, params, REFERENCE)


def test_everything_comes_back_and_is_scored_anew(programs, tmp_path):
    before = rollout(programs)
    saved_rollout.write(tmp_path, programs, before, 3, PARAMS)
    after = read(tmp_path, programs)
    assert after.graded == before.graded
    for field in fields(Episodes):
        want = getattr(before.local, field.name)
        for found in (after.local, after.episodes):
            value = np.asarray(getattr(found, field.name))
            assert value.dtype == want.dtype
            np.testing.assert_array_equal(value, want, err_msg=field.name)
    assert after.scores == (REFERENCE, after.episodes)


def test_another_step_or_policy_does_not_take_it(programs, tmp_path):
    saved_rollout.write(tmp_path, programs, rollout(programs), 3, PARAMS)
    assert read(tmp_path, programs, step=4) is None
    assert read(tmp_path, programs, params={"w": PARAMS["w"] + 1}) is None
    assert read(tmp_path, programs) is not None


@pytest.mark.parametrize("size", [0, 100, -10])
def test_a_damaged_one_is_passed_over(size, programs, tmp_path):
    saved_rollout.write(tmp_path, programs, rollout(programs), 3, PARAMS)
    path = tmp_path / saved_rollout.NAME
    path.write_bytes(path.read_bytes()[:size])
    assert read(tmp_path, programs) is None


def test_there_may_be_none(programs, tmp_path):
    assert read(tmp_path, programs) is None
    saved_rollout.write(tmp_path, programs, rollout(programs), 3, PARAMS)
    saved_rollout.drop(tmp_path)
    saved_rollout.drop(tmp_path)
    assert read(tmp_path, programs) is None
