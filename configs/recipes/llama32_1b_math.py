"""Llama-3.2-1B-Instruct on MATH, in full, on one GPU.

Run:     python -m score_jax.main --config=configs/recipes/llama32_1b_math.py[:METHOD]
Cost:    unknown: not run; docs/recipes.md has the plan's memory and least times.
Expect:  unknown: not run.
Source:  the rates of configs/recipe.py; the method's other numbers are the paper's.

MATH comes as configs/presets.py says, 4,500 problems from a package; docs/tasks.md has the hub's
12,000. 396 steps of 64 dialogues are 198 for each stage of SCoRe: by the plan more do not fit.
"""

from ml_collections import ConfigDict

from configs import recipe

FITS = ("h100:1", "v5e:2x4")


def get_config(method: str = "score") -> ConfigDict:
    """A method of configs/methods.py on this model."""
    return recipe.make("llama32_1b_math", method, recipe.MATH | recipe.FEWER)
