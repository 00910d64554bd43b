"""Qwen2.5-1.5B-Instruct on MATH with an adapter, on one GPU of 24 GB.

Run:     python -m score_jax.main --config=configs/recipes/qwen25_1p5b_math_lora.py[:METHOD]
Cost:    unknown: not run; docs/recipes.md has the plan's memory and least times.
Expect:  unknown: not run.
Source:  the rates of configs/recipe.py; the method's other numbers are the paper's.

MATH comes as configs/presets.py says, 4,500 problems from a package; docs/tasks.md has the hub's
12,000. 396 steps of 64 dialogues are 198 for each stage of SCoRe.
"""

from ml_collections import ConfigDict

from configs import recipe

FITS = ("rtx4090:1",)


def get_config(method: str = "score") -> ConfigDict:
    """A method of configs/methods.py on this model."""
    fields = (
        recipe.MATH
        | recipe.FEWER
        | {
            "learner.microbatches": 16,
            "lora.rank": 16,
            "optimizer.learning_rate": 2e-5,
        }
    )
    return recipe.make("qwen25_1p5b_math", method, fields)
