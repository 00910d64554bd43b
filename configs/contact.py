"""Stage I of SmolLM2-135M in a few steps, for a first contact with one host of up to eight devices.

Run:     launch/first_contact.sh
Cost:    a minute or two on an accelerator: unknown, not run there. Five minutes on two cores.
Expect:  nothing but that it runs.
Source:  score_jax/planning/first_contact.py.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import presets, stage1


def get_config() -> ConfigDict:
    """The brief preset, with rows for eight devices."""
    config: Any = presets.apply(stage1.get_config(), "smollm2_135m_brief")
    config.name = "contact"
    config.steps, config.batch = 4, 8
    config.checkpoint.update({"every": 1, "keep": 2})
    config.learner.microbatches = 1
    return config
