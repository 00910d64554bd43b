"""Single-turn RL, a baseline: reward for the first attempt only, evaluated with both.

Run:     python -m score_jax.main --config=configs/single_turn.py
Cost:    unknown: not timed; as many steps as both stages of SCoRe, one turn each.
Expect:  accuracy/turn1 rises; the second attempt copies it, so delta stays near 0. Greedy, 1,000
         test problems, mean of five seeds: 53.9% [50.8, 57.1] at both turns, gain 0.0 [0.0, 0.0];
         commit 22a729e, docs/results.md.
Source:  arXiv:2409.12917, section 6 (ablations); as many steps and samples as both stages,
         but no second attempt is sampled, since nothing would be learnt from it.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, presets


def get_config(preset: str = "") -> ConfigDict:
    """Single-turn RL on the embedded model and task, or a preset of configs/presets.py."""
    config: Any = common.get_config()
    config.name = "single_turn"
    config.steps = 80
    config.optimizer.learning_rate = 1e-4  # chosen on validation, docs/results.md
    config.objective.reward_weights = (1.0,)
    config.objective.beta = (0.01,)
    return presets.apply(config, preset)
