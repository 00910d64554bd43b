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
    return recipe.make(
        "gemma3_270m_words", method, recipe.SHORTER | {"optimizer.learning_rate": 2e-6}
    )
