"""Qwen2.5-Coder-0.5B-Instruct on MBPP, measured on HumanEval, in full, on one GPU.

Run:     python -m score_jax.main --config=configs/recipes/qwen25_coder_0p5b_code.py[:METHOD]
Cost:    unknown: three steps were run; docs/recipes.md has the plan's memory and least times.
Expect:  unknown: docs/real_models.md has the base model's numbers and those of three steps.
Source:  the rates of configs/recipe.py; the method's other numbers are the paper's.

204 steps of 128 dialogues are 102 for each stage of SCoRe. Programs run in the sandbox of
docs/tasks.md, which needs Linux.
"""

from ml_collections import ConfigDict

from configs import recipe

FITS = ("h100:1", "v5e:2x4")


def get_config(method: str = "score") -> ConfigDict:
    """A method of configs/methods.py on this model."""
    return recipe.make("qwen25_coder_0p5b_code", method, recipe.SHORTER)
