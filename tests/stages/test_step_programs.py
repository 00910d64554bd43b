"""What the programs of a step send and keep, on eight fake devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from score_jax.rl.sampling_plan import BLOCK, PATIENCE

LAYERS, ROWS, WIDTH, FLOAT = 2, 4, 16, 4  # of tests.eight_devices; rows per sampling shard


def fake_devices(out, *more):
    """Runs `tests.planning.fake_devices` and reads what it writes."""
    subprocess.run(
        [sys.executable, "-m", "tests.planning.fake_devices", str(out), *more],
        cwd=Path(__file__).parent.parent.parent,
        env=os.environ
        | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        check=True,
        timeout=1200,
    )
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Collectives of the resharding and sampling programs, by mesh."""
    return fake_devices(tmp_path_factory.mktemp("counted") / "out.json")


def in_loop(found):
    return {(c["kind"], c["group"]): c for c in found["decode"] if c["in_loop"]}


def test_decoding_with_whole_parameters_asks_only_whether_all_are_done(counted):
    """Once before eight iterations of the loop; here it runs once."""
    found = in_loop(counted["fsdp"])
    assert set(found) == {("all-reduce", 8)} and found["all-reduce", 8]["count"] == 1
    assert found["all-reduce", 8]["wire_bytes"] < 8


def test_a_split_decode_step_adds_up_twice_a_layer_and_gathers_no_parameter(counted):
    """Behind attention and behind the MLP; besides, the lookup and the softmax, once each.

    A regression shows as another count, or as a message of more than the rows' activations.
    """
    found = in_loop(counted["sampling_tensor"])
    assert set(found) == {("all-reduce", 2), ("all-gather", 2), ("all-reduce", 4)}
    # Two a layer; lookup (with the chosen token's logit); maximum and sum of the softmax.
    # A block of forced tokens takes the first alone.
    one = 2 * LAYERS + 1 + 2
    assert found["all-reduce", 2]["count"] == PATIENCE * one + 2 * LAYERS
    state = ROWS * WIDTH * FLOAT
    sums = (PATIENCE * (2 * LAYERS + 1) + 2 * LAYERS * BLOCK) * state
    assert sums <= found["all-reduce", 2]["wire_bytes"] <= sums + PATIENCE * 3 * ROWS * FLOAT
    # The best token of each half of the vocabulary, and its value.
    assert found["all-gather", 2]["count"] == 2 * PATIENCE
    assert found["all-gather", 2]["wire_bytes"] == 2 * ROWS * 4 * PATIENCE
    assert found["all-reduce", 4]["count"] == 1  # are all done?


def test_resharding_gathers_over_fsdp_and_exchanges_over_swing(counted):
    assert {c["kind"] for c in counted["fsdp"]["reshard"]} == {"all-gather"}
    kinds = {(c["kind"], c["group"]) for c in counted["sampling_tensor"]["reshard"]}
    assert kinds == {("all-gather", 2), ("all-to-all", 2)}


@pytest.mark.slow
def test_what_a_step_keeps_is_predicted_exactly_and_an_update_nearly(tmp_path):
    """The process's peak stands in for the devices': all eight are in its memory."""
    memory = fake_devices(tmp_path / "out.json", "measure")["memory"]
    assert memory["kept"] == memory["predicted"]
    assert memory["update_measured"] == pytest.approx(memory["update_predicted"], rel=0.3)
