"""Gemma 3 270M (instruction-tuned) on word problems, in full, on one GPU or a large CPU.

Run:     python -m score_jax.main --config=configs/recipes/gemma3_270m_words.py[:METHOD]
Fits:    one GPU of 24 GB, a v5e-8; docs/recipes.md has memory and times.

The problems are made by reasoning-gym. 200 steps of 128 dialogues are 100 for each stage of SCoRe.
"""

from ml_collections import ConfigDict

from configs import recipes

FITS = ("l4:1", "v5e:2x4")


def get_config(method: str = "score") -> ConfigDict:
    """A method of configs/methods.py on this model."""
    fields = recipes.MIXED | {
        "steps": 200,
        "batch": 32,
        "sampling.group_size": 4,
        "learner.microbatches": 16,
        "optimizer.learning_rate": 2e-6,
        "checkpoint.every": 20,
    }
    return recipes.make("gemma3_270m_words", method, fields)
