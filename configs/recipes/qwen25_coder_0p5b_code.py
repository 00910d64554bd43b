"""Qwen2.5-Coder-0.5B-Instruct on MBPP, measured on HumanEval, in full, on one GPU.

Run:     python -m score_jax.main --config=configs/recipes/qwen25_coder_0p5b_code.py[:METHOD]
Fits:    one GPU of 80 GB, a v5e-8; docs/recipes.md has memory and times.

200 steps of 128 dialogues are 100 for each stage of SCoRe. Programs run in the sandbox of
docs/tasks.md, which needs Linux.
"""

from ml_collections import ConfigDict

from configs import recipes

FITS = ("h100:1", "v5e:2x4")


def get_config(method: str = "score") -> ConfigDict:
    """A method of configs/methods.py on this model."""
    fields = recipes.MIXED | {
        "steps": 200,
        "batch": 32,
        "sampling.group_size": 4,
        "learner.microbatches": 16,
        "optimizer.learning_rate": 1e-6,
        "checkpoint.every": 20,
    }
    return recipes.make("qwen25_coder_0p5b_code", method, fields)
