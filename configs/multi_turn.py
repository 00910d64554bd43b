"""Standard multi-turn RL, a baseline: the final answer's reward, no Stage I, no bonus.

The reward of the second attempt is credited to the tokens of both attempts alike
(gamma = 1), as a trainer that sees one episode with one reward does.

Run:     python -m score_jax.main --config=configs/multi_turn.py
Cost:    unknown: not timed; as many steps and dialogues as both stages of SCoRe.
Expect:  on the embedded task it learns to correct too. Greedy, 1,000 test problems, mean of five
         seeds: 54.4% [51.5, 57.5] at turn 1, 84.8% [82.4, 87.2] at turn 2, gain 30.4
         [27.5, 33.1]; commit 22a729e. At a rate of 1e-4 it copies its first attempt, as the paper
         saw on MATH (docs/results.md).
Source:  arXiv:2409.12917, section 4; as many steps and samples as both stages.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, presets


def get_config(preset: str = "") -> ConfigDict:
    """Standard multi-turn RL on the embedded model and task, or a preset of configs/presets.py."""
    config: Any = common.get_config()
    config.name = "multi_turn"
    config.steps = 80
    config.objective.reward_weights = (0.0, 1.0)
    config.objective.gamma = 1.0
    return presets.apply(config, preset)
