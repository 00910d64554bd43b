"""Stage I of SmolLM2-135M in a few steps, for a first contact with one host of up to eight devices.

Run:     launch/first_contact.sh
         configs/contact.py:one_chip is the step that it times on a single chip: 7.6 of a
         v5e's 15.75 GiB, by --mode=plan --topology=v5e:1x1
Cost:    a minute or two on an accelerator: unknown, not run there. Five minutes on two cores.
Expect:  nothing but that it runs.
Source:  score_jax/planning/first_contact.py.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import presets, stage1


def get_config(part: str = "run") -> ConfigDict:
    """The brief preset, with rows for eight devices; in bfloat16, as models are trained there.

    Args:
      part: "run"; "one_chip": a step to be timed where the usual one's model does not fit.
    """
    if part not in ("run", "one_chip"):
        raise ValueError(f"the config's part is {part!r}; choose one of run, one_chip")
    preset = "smollm2_135m_brief" if part == "run" else "smollm2_135m"
    config: Any = presets.apply(stage1.get_config(), preset)
    config.name, config.compute.dtype = "contact", "bfloat16"
    if part == "one_chip":
        return config
    config.steps, config.batch = 4, 8
    config.checkpoint.update({"every": 1, "keep": 2})
    config.learner.microbatches = 1
    return config
