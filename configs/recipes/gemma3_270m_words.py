"""Gemma 3 270M (instruction-tuned) on word problems, in full, on one GPU or a large CPU.

Run:     python -m score_jax.main --config=configs/recipes/gemma3_270m_words.py[:METHOD]
Cost:    unknown: not run; docs/recipes.md has the plan's memory and least times.
Expect:  unknown: not run.
Source:  the rates of configs/recipe.py; the method's other numbers are the paper's.

The problems are made by reasoning-gym. 204 steps of 128 dialogues are 102 for each stage of SCoRe.
"""

from ml_collections import ConfigDict

from configs import recipe

FITS = ("l4:1", "v5e:2x4")


def get_config(method: str = "score") -> ConfigDict:
    """A method of configs/methods.py on this model."""
    fields = recipe.MIXED | {
        "steps": 204,
        "batch": 32,
        "sampling.group_size": 4,
        "learner.microbatches": 16,
        "optimizer.learning_rate": 2e-6,
        "checkpoint.every": 17,
        "evaluation.batch": 25,
    }
    return recipe.make("gemma3_270m_words", method, fields)
