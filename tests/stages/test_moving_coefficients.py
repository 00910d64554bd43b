"""A beta that moves is a part of the run's state: a resumed run goes on with it, bit for bit."""

from tests.stage_configs import train
from tests.tiny_stages import lines, without_times

MOVING = {
    "coefficients__beta": "target",
    "coefficients__target_kl": 1e-4,
    "coefficients__rate": 1.0,
    "coefficients__alpha": "constant",
    "evaluation__problems": 2,
    "evaluation__batch": 2,
    "evaluation__samples": 0,
}


def test_a_resumed_run_goes_on_with_the_beta_that_had_moved(tmp_path):
    train(tmp_path / "whole", steps=6, **MOVING)
    train(tmp_path / "cut", steps=4, **MOVING)
    train(tmp_path / "cut", steps=6, **MOVING)
    whole, cut = (
        without_times(lines(tmp_path / name / "stage1/metrics.jsonl")) for name in ("whole", "cut")
    )
    assert whole == cut
    betas = [row["beta/turn1"] for row in whole]
    assert len(set(betas)) > 3, "the beta of turn 1 has to move at all"
    assert len({row["beta/turn2"] for row in whole}) == 1, "only turn 1 is named in beta_turns"
