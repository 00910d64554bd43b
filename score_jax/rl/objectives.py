"""What a run maximises: per-turn returns, baselines and weights of sampled dialogues.

Stage I, Stage II, single-turn and standard multi-turn RL are four values of one
`Objective`. With rewards r1, r2 and gamma = 0 the turns' returns are

    Stage I    turn 1: 0                     turn 2: r2
    Stage II   turn 1: r1                    turn 2: r2 + alpha (r2 - r1)

and every turn t pays beta[t] for each nat of KL(policy || reference). Returns stay
per turn to the end: one scalar for both would pay a policy to fail first.

Source: arXiv:2409.12917, sections 4 and 5; docs/method.md derives what alpha does.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, assert_never, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from score_jax.checks import NotNegative, Share, check_fields
from score_jax.rl.logprobs import spread_to_tokens, sum_by_turn
from score_jax.rl.mismatch import IMPORTANCE_CAPS, ImportanceCap
from score_jax.types import Episodes

Kl = Literal["reward", "exact", "k2", "k3"]
Baseline = Literal["none", "running", "batch", "leave_one_out", "leave_one_out_attempt"]
LengthNorm = Literal["sum", "constant", "sequence"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a run maximises. Tuples hold one value per turn."""

    reward_weights: tuple[NotNegative, ...]  # stage I: (0, 1); II: (1, 1); single turn: (1, 0)
    beta: tuple[NotNegative, ...]  # reward per nat of KL(policy || reference)
    alpha: NotNegative = 0.0  # progress bonus on turns 2.., in rewards
    gamma: Share = 0.0  # share of a later turn's reward that reaches the turn before it
    kl: Kl = "exact"  # reward: log-ratio in the return; else a per-token loss
    baseline: Baseline = "leave_one_out"
    normalise: bool = False  # divide by the standard deviation of the unshaped advantages
    length_norm: LengthNorm = "sum"  # a turn's token losses: summed, / limit, / own length
    clip: float | None = None  # PPO clip range of the probability ratio; None: REINFORCE
    importance_cap: ImportanceCap = None  # of learner / sampler, by token; "auto": by the dtype

    def __post_init__(self):
        check_fields(self, "objective")
        if len(self.reward_weights) != len(self.beta):
            raise ValueError(
                f"objective.beta is {self.beta}; give one value per turn, "
                f"as many as objective.reward_weights {self.reward_weights}"
            )
        if self.clip is not None and not 0 < self.clip < 1:
            raise ValueError(f"objective.clip is {self.clip}; set a value in (0, 1) or None")
        self.check_importance_cap()
        for name, choices in (("kl", Kl), ("baseline", Baseline), ("length_norm", LengthNorm)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"objective.{name} is {getattr(self, name)!r}; "
                    f"choose one of {', '.join(get_args(choices))}"
                )

    def check_importance_cap(self) -> None:
        """Checks that the cap lets a ratio of 1 pass.

        Raises:
          ValueError: it does not, or is no number.
        """
        cap = self.importance_cap
        number = isinstance(cap, int | float) and not isinstance(cap, bool)
        if cap not in (None, "auto") and not (number and math.isfinite(cap) and cap >= 1):
            raise ValueError(
                f"objective.importance_cap is {cap!r}; set a finite value >= 1, None or 'auto'"
            )

    @property
    def turns(self) -> int:
        """Number of attempts per dialogue."""
        return len(self.reward_weights)

    def resolved(self, dtype: str) -> "Objective":
        """The objective of a decoder of this type: "auto" becomes a value."""
        if self.importance_cap != "auto":
            return self
        return replace(self, importance_cap=IMPORTANCE_CAPS[dtype])


def discounted(
    rewards: Float[Array, "B R"], weights: tuple[float, ...], gamma: float
) -> Float[Array, "B R"]:
    """Each turn's own weighted reward plus gamma times the next turn's return."""
    returns = [rewards[:, -1] * weights[-1]]
    for turn in range(rewards.shape[1] - 2, -1, -1):
        returns.insert(0, rewards[:, turn] * weights[turn] + gamma * returns[0])
    return jnp.stack(returns, axis=1)


def progress(rewards: Float[Array, "B R"]) -> Float[Array, "B R"]:
    """What each attempt gained over the one before it; 0 for the first.

    The bonus is paid to the turn that made the progress and is never discounted
    back to an earlier turn, which would reward failing first.

    Source: arXiv:2409.12917, section 5.2.
    """
    return jnp.diff(rewards, axis=1, prepend=rewards[:, :1])


def turn_returns(
    objective: Objective, rewards: Float[Array, "B R"], kl: Float[Array, "B R"]
) -> Float[Array, "B R"]:
    """The return that the tokens of each turn are credited with.

    Args:
      kl: nats of each turn's summed log-ratio; enters for kl="reward" only.
    """
    returns = discounted(rewards, objective.reward_weights, objective.gamma)
    returns = returns + objective.alpha * progress(rewards)
    if objective.kl == "reward":
        returns = returns - jnp.asarray(objective.beta) * kl
    return returns


def leave_one_out(values: Float[Array, "... G"]) -> Float[Array, "... G"]:
    """The mean of the other members of each group.

    Source: arXiv:2402.14740, section 3.3 (RLOO).
    """
    return (values.sum(-1, keepdims=True) - values) / (values.shape[-1] - 1)


def baselines(
    kind: Baseline,
    returns: Float[Array, "B R"],
    running: Float[Array, "R"],
    *,
    group_size: int,
    second_attempts: int,
) -> Float[Array, "B R"]:
    """What each row's return is compared with; never depends on the row's own turn.

    Args:
      running: running mean of each turn's return before this batch.
      group_size: G, rows per problem; a problem's rows are adjacent.
      second_attempts: second attempts drawn from each first attempt; adjacent within a problem.

    "batch" takes the mean of the whole batch, the row included: a bias of 1/B.
    """
    match kind:
        case "none":
            return jnp.zeros_like(returns)
        case "running":
            return jnp.broadcast_to(running, returns.shape)
        case "batch":
            return jnp.broadcast_to(returns.mean(0), returns.shape)
        case "leave_one_out":
            grouped = returns.reshape(-1, group_size, returns.shape[1])  # P G R
            grouped = jnp.moveaxis(grouped, -1, 1)  # P R G
            return jnp.moveaxis(leave_one_out(grouped), 1, -1).reshape(returns.shape)
        case "leave_one_out_attempt":
            return attempt_baselines(
                returns, group_size=group_size, second_attempts=second_attempts
            )
        case _:
            assert_never(kind)


def attempt_baselines(
    returns: Float[Array, "B R"], *, group_size: int, second_attempts: int
) -> Float[Array, "B R"]:
    """Baselines of first attempts: the problem's other ones; of later turns: same first attempt."""
    # P, first attempts, second attempts of each, R
    tree = returns.reshape(-1, group_size // second_attempts, second_attempts, returns.shape[1])
    first = leave_one_out(tree[..., 0].mean(2))  # P A: the problem's other first attempts
    first = jnp.broadcast_to(first[:, :, None, None], (*tree.shape[:3], 1))
    later = leave_one_out(jnp.moveaxis(tree[..., 1:], -1, 2))  # P A R-1 second_attempts
    return jnp.concatenate([first, jnp.moveaxis(later, 2, -1)], axis=-1).reshape(returns.shape)


def turn_advantages(
    objective: Objective,
    rewards: Float[Array, "B R"],
    kl: Float[Array, "B R"],
    running: Float[Array, "R"],
    *,
    group_size: int,
    second_attempts: int = 1,
) -> Float[Array, "B R"]:
    """Each turn's return less its baseline, with the turns' weights intact.

    With `normalise` the divisor is the standard deviation of the plain reward's
    advantage, unweighted and without bonus: dividing by the shaped one's would
    cancel 1 + alpha and make alpha a no-op.

    Returns:
      Advantages in rewards (or standard deviations of the plain reward).
    """

    def centred(values: Float[Array, "B R"], running: Float[Array, "R"]) -> Float[Array, "B R"]:
        return values - baselines(
            objective.baseline,
            values,
            running,
            group_size=group_size,
            second_attempts=second_attempts,
        )

    advantages = centred(turn_returns(objective, rewards, kl), running)
    if objective.normalise:
        plain = discounted(rewards, (1.0,) * objective.turns, objective.gamma)
        deviation = centred(plain, plain.mean(0)).std(0)
        advantages = advantages / jnp.maximum(deviation, 1e-2)
    return jax.lax.stop_gradient(advantages)


def token_weights(
    objective: Objective, turn: Int[Array, "B T"], *, limit: int
) -> Float[Array, "B T"]:
    """What each token's loss counts for, so that a batch's loss is one weighted sum.

    The denominators are those of the whole batch, so that the sum over microbatches
    and devices is exact.

    Args:
      limit: the most tokens that a turn may have; the divisor of length_norm="constant".
    """
    rows = turn.shape[0]
    scale = jnp.full((rows, objective.turns), 1.0 / rows)
    if objective.length_norm == "constant":
        scale = scale / limit
    elif objective.length_norm == "sequence":
        lengths = sum_by_turn(jnp.ones(turn.shape), turn, objective.turns)
        scale = scale / jnp.maximum(lengths, 1.0)
    return spread_to_tokens(scale, turn)


def policy_loss(
    objective: Objective,
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
) -> Float[Array, "B T"]:
    """The per-token loss whose gradient is the policy gradient.

    Args:
      old_logprobs: the learner's before the first update, not the sampler's: what rounding
        puts between those two is not movement, and has a weight of its own.

    Source: arXiv:1707.06347, eq. 7, for the clipped form.
    """
    if objective.clip is None:
        return -advantages * logprobs
    ratio = jnp.exp(logprobs - old_logprobs)
    clipped = jnp.clip(ratio, 1 - objective.clip, 1 + objective.clip)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def turn_log_ratio(
    episodes: Episodes, reference_logprobs: Float[Array, "B T"], turns: int
) -> Float[Array, "B R"]:
    """Each turn's summed log pi(y) - log pi_ref(y) of the sampled tokens, in nats.

    Args:
      episodes: with the learner's log-probabilities of the policy, as the reference's are.
    """
    return sum_by_turn(episodes.logprobs - reference_logprobs, episodes.turn, turns)
