"""Recipes: an open model, what it learns on, and numbers for a model of its size on one machine.

    python -m score_jax.main --config=configs/recipes/qwen25_1p5b_math.py[:METHOD]

METHOD is a name of configs/methods.py; without one it is SCoRe, both stages. A recipe is a preset
(configs/presets.py) with fewer steps and other rates; docs/recipes.md says what each takes.

Learning rates: 1e-6 is what public recipes train models of 1 to 4 billion parameters with, in
full, and 2e-5 with LoRA; the paper's 5e-6 and 1e-5 are those of Gemini.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import methods, presets, warm_up

# Activations, and the parameters while sampling; those that are trained stay in float32, as does
# Adam's state. They are split over all devices there are.
MIXED: dict[str, Any] = {
    "compute.dtype": "bfloat16",
    "compute.remat": "full",
    "mesh.fsdp": -1,
}

# 256 dialogues a step, 198 steps for each stage of SCoRe; evaluation draws fewer rows at a time.
MATH = MIXED | {
    "steps": 396,
    "batch": 64,
    "sampling.group_size": 4,
    "learner.microbatches": 32,
    "optimizer.learning_rate": 1e-6,
    "checkpoint.every": 22,
    "evaluation.batch": 50,
}
# 64 dialogues a step, for models whose cache takes much memory a token.
FEWER = {"batch": 16, "learner.microbatches": 8, "evaluation.batch": 16}
# 128 dialogues a step, 102 steps for each stage.
SHORTER = MIXED | {
    "steps": 204,
    "batch": 32,
    "sampling.group_size": 4,
    "learner.microbatches": 16,
    "optimizer.learning_rate": 1e-6,
    "checkpoint.every": 17,
    "evaluation.batch": 25,
}


def make(
    preset: str, method: str, fields: dict[str, Any], *, warmed: Sequence[dict[str, Any]] = ()
) -> ConfigDict:
    """A recipe's config.

    Args:
      preset: model and task, of configs/presets.py.
      method: of configs/methods.py.
      fields: of all stages, where they differ from the preset; "optimizer.learning_rate": 1e-6.
      warmed: fields of a warm-up's stages before those of the method; (): there is none.

    Raises:
      ValueError: there is no such method, or it cannot follow a warm-up.
    """
    if method not in methods.METHODS:
        names = ", ".join(methods.METHODS)
        raise ValueError(f"the recipe's method is {method!r}; choose one of {names}")
    config: Any = methods.shared(preset)
    config.update_from_flattened_dict(fields)
    held = presets.STAGE1_BETAS[presets.split(preset)[1]][0]
    own = methods.suited(methods.METHODS[method], config, held)
    if warmed:
        if own.get("rounds", 1) > 1 or not own["stages"]:
            raise ValueError(
                f"the recipe's method is {method!r}, which is no list of stages that runs once: "
                "this recipe begins with a warm-up; choose another method"
            )
        own |= {"stages": warm_up.before(warmed, own["stages"])}
    return methods.made(config, method, own)
