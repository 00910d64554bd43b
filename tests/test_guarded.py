"""The guard that other tests run steps under: what it lets pass, and what it stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from score_jax.distributed import sharding
from score_jax.stages.train import StageRun
from tests.guarded import guarded, guarded_steps
from tests.stage_configs import train

STOPPED = "Disallowed host-to-device transfer"


@pytest.mark.parametrize(
    "slip",
    [
        lambda x: jax.jit(jnp.add)(x, np.ones(3, np.float32)),
        lambda x: jax.jit(jnp.add)(x, 1),
        lambda x: x + jnp.zeros(3),
        lambda x: x[0],
    ],
    ids=["numpy into a program", "a number into a program", "an array made outside", "an index"],
)
def test_a_host_value_that_slips_in_raises(slip):
    with pytest.raises(JaxRuntimeError, match=STOPPED):
        guarded(slip)(np.ones(3, np.float32))


def test_what_is_asked_for_passes():
    @guarded
    def call(x):
        return jax.device_get(jax.jit(jnp.add)(x, jax.device_put(np.ones(3, np.float32))))

    assert call(np.ones(3, np.float32)).tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", ["stage1", "base"])
def test_a_stages_step_that_moves_host_arrays_unasked_stops(tmp_path, monkeypatch, name):
    """Rows that nobody puts on the devices: of prompts, or of worked dialogues."""

    run = StageRun.run

    def with_rows_unmoved(stage, learn):
        monkeypatch.setattr(sharding, "rows_to_global", lambda mesh, rows: rows)
        run(stage, learn)

    monkeypatch.setattr(StageRun, "run", with_rows_unmoved)
    with pytest.raises(JaxRuntimeError, match=STOPPED):
        train(tmp_path, name, evaluation__problems=4)


def test_outside_of_the_steps_nothing_is_guarded():
    with guarded_steps():
        assert jax.jit(jnp.add)(1, np.ones(1)).tolist() == [2]
