"""Schedules of alpha and of each turn's beta, whose state is a part of the checkpoint.

    constant   stays
    linear     moves to its end value over the stage's rollouts
    balance    beta such that beta times the turn's KL is `balance` times the size of the last
               turn's return: the two terms of Stage I pull equally hard
    target     beta such that the turn's KL stays at `target_kl`

Source: arXiv:2409.12917, section 5.1, for the balance; arXiv:1909.08593, section 2.2, for the
target's proportional controller in log space.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from score_jax.checks import Count, Decay, NotNegative, Positive, check_fields
from score_jax.rl.objectives import Objective
from score_jax.types import Coefficients

AlphaSchedule = Literal["constant", "linear"]
BetaSchedule = Literal["constant", "linear", "balance", "target"]
LARGEST_ERROR = 0.2  # of the KL from its target that one rollout may act on, as a share


@dataclass(frozen=True, kw_only=True)
class CoefficientsConfig:
    """How alpha and beta move; they begin with the objective's values."""

    alpha: str = "constant"  # or linear
    alpha_end: NotNegative = 0.0  # after the last rollout, if linear
    beta: str = "constant"  # linear, balance or target
    beta_turns: tuple[Count, ...] = (1,)  # turns whose beta moves
    beta_end: NotNegative = 0.0  # after the last rollout, if linear
    balance: Positive = 1.0  # beta times KL, as a multiple of the last turn's return
    target_kl: Positive = 0.1  # nats of the whole turn
    rate: Positive = 0.1  # share of a KL's relative error by which `target` changes beta
    decay: Decay = 0.9  # of the averages that `balance` uses, per rollout
    beta_range: tuple[Positive, ...] = (1e-4, 10.0)  # bounds of balance and target

    def __post_init__(self):
        check_fields(self, "coefficients")
        for name, choices in (("alpha", AlphaSchedule), ("beta", BetaSchedule)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"coefficients.{name} is {getattr(self, name)!r}; "
                    f"choose one of {', '.join(get_args(choices))}"
                )
        if len(self.beta_range) != 2 or self.beta_range[0] > self.beta_range[1]:
            raise ValueError(
                f"coefficients.beta_range is {self.beta_range}; set two values, the lower first"
            )

    def check(self, objective: Objective) -> None:
        """Checks that the turns exist and have a KL to move.

        Raises:
          ValueError: a turn does not exist, or its beta is 0 and can't be scaled.
        """
        for turn in self.beta_turns if self.beta != "constant" else ():
            if turn > objective.turns:
                raise ValueError(
                    f"coefficients.beta_turns is {self.beta_turns}; there are {objective.turns} "
                    f"turns: leave {turn} out"
                )
            if not objective.beta[turn - 1]:
                raise ValueError(
                    f"coefficients.beta is {self.beta!r} for turn {turn}, but objective.beta is "
                    f"{objective.beta}; set a first value above 0"
                )


CONSTANT = CoefficientsConfig()


def initial(objective: Objective) -> Coefficients:
    """The objective's own values."""
    return Coefficients(
        alpha=jnp.float32(objective.alpha),
        beta=jnp.asarray(objective.beta, jnp.float32),
        kl=jnp.zeros(objective.turns),
        gain=jnp.zeros(()),
    )


def advance(
    config: CoefficientsConfig,
    objective: Objective,
    now: Coefficients,
    *,
    step: Int[Array, ""],
    steps: int,
    kl: Float[Array, "R"],
    returns: Float[Array, "R"],
) -> Coefficients:
    """The coefficients of the next update.

    Args:
      step: rollouts learnt from, this one included.
      steps: rollouts of the whole stage.
      kl: nats of each turn under the policy that this rollout was drawn from.
      returns: mean return of each turn.
    """
    share = jnp.minimum(step / max(1, steps - 1), 1.0)

    def moved(start: float, end: float) -> Float[Array, ""]:
        return jnp.float32(start) + share * (end - start)

    kl_mean = config.decay * now.kl + (1 - config.decay) * kl
    gain = config.decay * now.gain + (1 - config.decay) * jnp.abs(returns[-1])
    low, high = config.beta_range
    if config.beta == "linear":
        beta = jnp.stack([moved(start, config.beta_end) for start in objective.beta])
    elif config.beta == "balance":  # both averages began at 0, so their ratio needs no correction
        beta = jnp.clip(config.balance * gain / jnp.maximum(kl_mean, 1e-6), low, high)
    elif config.beta == "target":
        error = jnp.clip(kl / config.target_kl - 1, -LARGEST_ERROR, LARGEST_ERROR)
        beta = jnp.clip(now.beta * (1 + config.rate * error), low, high)
    else:
        beta = now.beta
    moves = jnp.asarray([turn in config.beta_turns for turn in range(1, objective.turns + 1)])
    return Coefficients(
        alpha=moved(objective.alpha, config.alpha_end) if config.alpha == "linear" else now.alpha,
        beta=jnp.where(moves, beta, now.beta),
        kl=kl_mean,
        gain=gain,
    )
