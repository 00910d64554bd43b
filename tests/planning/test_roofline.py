"""Bounds of a phase, by hand."""

import pytest

from score_jax.planning.chips import CHIPS
from score_jax.planning.hlo import Collective
from score_jax.planning.roofline import phase


def test_a_phase_waits_for_the_slowest_part():
    chip = CHIPS["v5e"]
    sent = [
        Collective("all-gather", 16, False, False, 3, 100e9),
        Collective("all-reduce", 32, False, True, 1, 1e9),
    ]
    found = phase("update", chip, 197e12, 1638e9, sent)
    assert found.compute_seconds == pytest.approx(1.0)
    assert found.hbm_seconds == pytest.approx(2.0)
    assert found.ici_seconds == pytest.approx(0.5)
    assert found.dcn_seconds == pytest.approx(0.32)
    assert found.seconds == pytest.approx(2.0) and found.bound == "HBM"


def test_a_phase_without_collectives_is_bound_by_compute_or_memory():
    found = phase("decode", CHIPS["v5p"], 459e12, 0.0, [])
    assert found.seconds == pytest.approx(1.0) and found.bound == "compute"
    assert found.ici_bytes == found.dcn_bytes == 0
