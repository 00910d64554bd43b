"""A run that is stopped on one device goes on over eight, and the other way round."""

import pytest

from score_jax.data import store
from tests.tiny_stages import command, finish, lines

FLAGS = ("--config.batch=8", "--config.evaluation.samples=0", "--config.checkpoint.every=2")
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
ONE = {"XLA_FLAGS": ""}
SPLIT = "--config.mesh.fsdp=-1"  # over all there are


def run(workdir, cache, steps, devices, *flags):
    arguments = command(workdir, *FLAGS, f"--config.steps={steps}", SPLIT, *flags)
    code, out, err = finish(arguments, cache, variables=devices)
    assert code == 0, err
    return out + err


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """Four steps on one device, without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, cache, 4, ONE)
    return folder


@pytest.mark.parametrize("devices", [(ONE, EIGHT), (EIGHT, ONE)], ids=["to_eight", "to_one"])
def test_a_moved_run_draws_the_same_dialogues_and_learns_the_same(tmp_path, cache, whole, devices):
    """In float32, up to the order of sums: so here the draws are the same tokens."""
    run(tmp_path, cache, 2, devices[0])
    told = run(tmp_path, cache, 4, devices[1])
    assert "goes on from the checkpoint of step 2 of 4" in told
    found, expected = (lines(path / "stage1/metrics.jsonl") for path in (tmp_path, whole))
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    for row, usual in zip(found, expected, strict=True):
        for name in ("accuracy/turn1", "accuracy/turn2", "length/turn1", "reward/turn2"):
            assert row[name] == usual[name], name
        for name in ("gradient_norm", "kl/turn1", "kl/turn2", "entropy/turn2"):
            assert row[name] == pytest.approx(usual[name], rel=1e-3, abs=1e-6), name
    drawn = [[one.tokens.tolist() for one in store.read(path / "stage1/rollouts")]
             for path in (tmp_path, whole)]  # fmt: skip
    assert sorted(drawn[0]) == sorted(drawn[1])


def test_a_mesh_that_the_devices_do_not_make_is_told_in_one_line(tmp_path, cache):
    run(tmp_path, cache, 2, ONE)
    arguments = command(tmp_path, *FLAGS, "--config.steps=4", "--config.mesh.fsdp=3")
    code, _, err = finish(arguments, cache, variables=EIGHT)
    last = err.strip().splitlines()[-1]
    assert code == 2 and "must be the number of devices, 8" in last and "fsdp=-1" in last
