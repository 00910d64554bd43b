"""The optimiser: Adam or Muon with clipping and a schedule, as Optax composes them."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import optax
import optax.contrib

from score_jax.checks import Decay, Natural, NotNegative, Positive, check_fields

Schedule = Literal["constant", "cosine", "linear"]
Kind = Literal["adam", "muon"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser and its learning rate over the optimiser's updates."""

    kind: Kind = "adam"  # muon: orthogonalised momentum for the blocks' matrices, Adam for the rest
    adam_share: Positive = 0.2  # of muon's learning rate, for the parameters that Adam updates

    learning_rate: Positive = 5e-6  # the paper's value on MATH; its schedule is not stated
    schedule: Schedule = "constant"  # how it falls to 0 after the warm-up
    warmup: Natural = 0  # updates over which it rises; the first has its share, never 0
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    clip_norm: Positive | None = 1.0  # global gradient norm; None: no clipping

    def __post_init__(self):
        check_fields(self, "optimizer")
        for name, choices in (("schedule", Schedule), ("kind", Kind)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"optimizer.{name} is {getattr(self, name)!r}; "
                    f"choose one of {', '.join(get_args(choices))}"
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
    first = config.learning_rate / config.warmup
    rise = optax.linear_schedule(first, config.learning_rate, config.warmup - 1)
    return optax.join_schedules([rise, after], [config.warmup])


def make_optimizer(config: OptimizerConfig, updates: int) -> optax.GradientTransformation:
    """Clipping, then AdamW (Adam where weight_decay is 0) or Muon."""
    rate = learning_rate(config, updates)
    if config.kind == "muon":
        inner = optax.contrib.muon(
            rate,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_learning_rate=lambda count: config.adam_share * rate(count),
            muon_weight_dimension_numbers=matrix_axes,
        )
    else:
        inner = optax.adamw(
            rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
        )
    if config.clip_norm is None:
        return inner
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), inner)


def matrix_axes(params: Any) -> Any:
    """Which axes of the stacked block matrices are inputs and outputs; None: not a matrix.

    Source: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/) for which
    parameters Muon is meant for: hidden matrices, not embeddings or scales.
    """

    def axes(path: tuple, leaf: Any) -> Any:
        # An adapter's pair lies below its target's name, and its `a` reads what that reads.
        names = {jax.tree_util.keystr((part,), simple=True) for part in path[-2:]}
        if leaf.ndim == 3:
            return optax.contrib.MuonDimensionNumbers((1,), (2,))
        if leaf.ndim == 4 and "out" in names:
            return optax.contrib.MuonDimensionNumbers((1, 2), (3,))
        return optax.contrib.MuonDimensionNumbers((1,), (2, 3)) if leaf.ndim == 4 else None

    return jax.tree_util.tree_map_with_path(axes, params)
