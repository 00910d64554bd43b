"""The optimiser: Adam with clipping and a schedule, as Optax composes them."""

from dataclasses import dataclass
from typing import Literal, get_args

import optax

Schedule = Literal["constant", "cosine", "linear"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam and its learning rate over the optimiser's updates."""

    learning_rate: float = 5e-6  # the paper's value on MATH; its schedule is not stated
    schedule: Schedule = "constant"  # how it falls to 0 after the warm-up
    warmup: int = 0  # updates over which it rises from 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0  # global gradient norm; None: no clipping

    def __post_init__(self):
        if not self.learning_rate > 0:
            raise ValueError(f"optimizer.learning_rate is {self.learning_rate}; set a value > 0")
        if self.schedule not in get_args(Schedule):
            raise ValueError(
                f"optimizer.schedule is {self.schedule!r}; "
                f"choose one of {', '.join(get_args(Schedule))}"
            )


def learning_rate(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """The learning rate at each update.

    Args:
      updates: of the whole stage, the warm-up included.
    """
    rest = max(1, updates - config.warmup)
    after = {
        "constant": optax.constant_schedule(config.learning_rate),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
    }[config.schedule]
    if config.warmup == 0:
        return after
    rise = optax.linear_schedule(0.0, config.learning_rate, config.warmup)
    return optax.join_schedules([rise, after], [config.warmup])


def make_optimizer(config: OptimizerConfig, updates: int) -> optax.GradientTransformation:
    """Clipping, then AdamW (Adam where weight_decay is 0)."""
    adam = optax.adamw(
        learning_rate(config, updates),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    if config.clip_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)
