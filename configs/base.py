"""The embedded base policy: pre-training on worked dialogues, in two stages.

Skills: to solve equations in one go as well as it can, to check any guess, and to correct
from a check. Then, from those, a wide optimum: gradients are taken a random step of the
weights away while the learning rate falls a second time, so that whatever moves the weights
later does not harm by itself; and the habit of repeating the first attempt settles. The
weights ship in score_jax/model/weights/bundled/equations, so nothing runs this unless asked to.

The parts receipts_skills and receipts are the same two stages on the second embedded task.

Run:     python -m score_jax.main --config=configs/base.py
         python -m score_jax.main --config=configs/base.py:receipts
Then:    cp runs/base/base/embedded/* score_jax/model/weights/bundled/equations/
         (of the second: receipts_base and receipts)
Cost:    13 minutes for skills (1,600 steps) on two busy cores; of base (300 steps) unknown: not
         timed, and the two have not been run in one go. The two of receipts: 6 minutes on one core.
Expect:  greedy accuracy 50.8% at both turns on 836 validation problems, 49.2% on 1,000 test
         problems, the second attempt a copy; docs/embedded_task.md, docs/results.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, presets


def get_config(part: str = "") -> ConfigDict:
    """Training from random weights ("skills"), or of the policy that they lead to; by task."""
    config: Any = common.get_config()
    config.program = "supervised"
    config.batch = 64  # dialogues per step
    config.examples = ConfigDict(
        {
            "source": "equations",
            "careful": 0.8,  # share of careful second attempts at first
            "careful_at_last": 0.12,
            "settling": 0.2,  # share of the steps that end with the latter
            "right": 0.25,  # share of right first attempts; wrong ones are not learnt
        }
    )
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
    config.optimizer.schedule = "cosine"
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.02
    config.checkpoint.every = 200
    config.checkpoint.select = "last"
    config.evaluation.data.split = "validation"
    parts = {
        "skills": (skills,),
        "": (wide,),
        "receipts_skills": (skills, receipts),
        "receipts": (wide, receipts),
    }
    if part not in parts:
        names = ", ".join(filter(None, parts))
        raise ValueError(f"the part of configs/base.py is {part!r}; choose {names}, or none")
    for change in parts[part]:
        change(config)
    return config


def skills(config: Any) -> None:
    """First attempts, checks and corrections, from random weights."""
    config.name = "skills"
    config.steps = 1600
    config.optimizer.learning_rate = 2e-2
    config.optimizer.warmup = 100


def wide(config: Any) -> None:
    """The same policy where random moves cost it little, and its habit."""
    config.name = "base"
    config.parent = "configs/base.py:skills"
    config.steps = 300
    config.optimizer.learning_rate = 6e-3
    config.optimizer.warmup = 20
    config.learner.weight_noise = 0.04
    config.examples.settling = 1.0


def receipts(config: Any) -> None:
    """The same of the second embedded task."""
    presets.apply(config, "receipts")
    config.name = f"receipts_{config.name}"
    config.examples.source = "receipts"
    if config.parent:
        config.parent = "configs/base.py:receipts_skills"
        config.examples.careful_at_last = 0.25  # a wrong attempt often needs two careful sites
