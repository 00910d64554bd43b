"""The embedded base policy: pre-training on worked dialogues.

It learns to solve equations in one go as well as it can, to check any guess, and to
correct from a check; and the habit of repeating its first attempt. Its weights ship
in score_jax/embedded/equations, so nothing runs this unless asked to.

Run:     python -m score_jax.main --config=configs/base.py
Then:    cp runs/base/base/embedded/* score_jax/embedded/equations/
Expect:  greedy accuracy about 0.64 at both turns, copying; see docs/embedded_task.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """Supervised training from random weights."""
    config: Any = common.get_config()
    config.name = "base"
    config.program = "supervised"
    config.steps = 1600
    config.batch = 64  # dialogues per step
    config.tokenizer.source = "trained"
    config.weights.source = "random"
    config.model = ConfigDict(
        {
            "vocab_size": 80,
            "layers": 3,
            "width": 64,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 16,
            "mlp_dim": 192,
            "embedding_scale": True,
            "unroll": 3,
        }
    )
    config.optimizer.kind = "muon"
    config.optimizer.learning_rate = 2e-2
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 100
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.02
    config.checkpoint.every = 400
    config.checkpoint.select = "last"
    config.evaluation.data.split = "validation"
    return config
