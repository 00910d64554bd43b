"""Stage I of SCoRe: reward for the second attempt, the first held to the base model.

Run:     python -m score_jax.main --config=configs/stage1.py
Needs:   nothing; the embedded base policy and task.
Cost:    a part of the 6 minutes of configs/stage2.py, which runs it; alone: not timed.
Expect:  accuracy/turn2 rises, accuracy/turn1 and kl/turn1 hardly move. Greedy, 1,000 test
         problems, five seeds: 49.1 to 50.2% at turn 1 (base model 49.2), 79.8 to 81.8% at turn 2
         (49.2); commit 22a729e, docs/results.md.
Source:  arXiv:2409.12917, section 5.1, eq. 3; betas from its table of hyper-parameters.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, presets


def get_config(preset: str = "") -> ConfigDict:
    """Stage I on the embedded model and task, or a preset of configs/presets.py."""
    config: Any = common.get_config()
    config.name = "stage1"
    config.steps = 40
    config.objective.reward_weights = (0.0, 1.0)
    config.objective.beta = (0.11, 0.01)  # beta1 + beta2 on turn 1, beta1 on turn 2
    return presets.apply(config, preset)
