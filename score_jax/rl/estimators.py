"""How the gradient of an objective is estimated: baselines, normalisations, weights, losses.

A baseline is a function in `BASELINES`, a normalisation one in `NORMALISATIONS`; a config
names them. To write another, add a function of the same arguments to a table (docs/method.md,
"Write your own estimator"). Rows find their group by their ids, so they may come in any order
and number. A row that is alone in its group has advantage 0, and is counted.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from score_jax.checks import Positive, check_fields
from score_jax.rl import logprobs
from score_jax.rl.dialogue import DialoguePlan
from score_jax.rl.mismatch import IMPORTANCE_CAPS, ImportanceCap
from score_jax.rl.objectives import Objective, discounted, turn_returns
from score_jax.types import Batch, Episodes, Ids, TokenScores

Kl = Literal["reward", "exact", "k2", "k3"]
LengthNorm = Literal["sum", "constant", "sequence"]
SMALLEST_DEVIATION = 1e-2  # a batch without signal is not blown up


class Groups(struct.PyTreeNode):
    """Which rows of a batch belong together, as masks over pairs of rows."""

    problem: Bool[Array, "B B"]  # the same draw of a problem
    attempt: Bool[Array, "B B"]  # of it, the same first attempt
    present: Bool[Array, "B R"]  # the row has this turn
    running: Float[Array, "R"]  # running mean of each turn's return before this batch


def group_rows(ids: Ids, present: Bool[Array, "B R"], running: Float[Array, "R"]) -> Groups:
    """Compares the ids of all rows; nothing is scattered or sorted."""
    problem = ids.draw[:, None] == ids.draw[None, :]
    attempt = problem & (ids.attempt[:, None] == ids.attempt[None, :])
    return Groups(problem=problem, attempt=attempt, present=present, running=running)


def mean_of_others(
    values: Float[Array, "B R"], peers: Bool[Array, "B B"], present: Bool[Array, "B R"]
) -> Float[Array, "B R"]:
    """The mean of each row's peers without the row itself; its own value where it has none.

    Source: arXiv:2402.14740, section 3.3 (RLOO).
    """
    others = (peers & ~jnp.eye(len(peers), dtype=bool)).astype(jnp.float32)
    known = present.astype(jnp.float32)
    highest = jax.lax.Precision.HIGHEST  # a TPU would round the values
    total = jnp.matmul(others, values * known, precision=highest)
    count = jnp.matmul(others, known, precision=highest)
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), values)


def no_baseline(returns: Float[Array, "B R"], groups: Groups) -> Float[Array, "B R"]:
    """Zero: plain REINFORCE."""
    return jnp.zeros_like(returns)


def running(returns: Float[Array, "B R"], groups: Groups) -> Float[Array, "B R"]:
    """The running mean of each turn's return in earlier batches."""
    return jnp.broadcast_to(groups.running, returns.shape)


def batch(returns: Float[Array, "B R"], groups: Groups) -> Float[Array, "B R"]:
    """The mean of the whole batch, the row included: a bias of 1/B."""
    return jnp.broadcast_to(turn_means(returns, groups.present), returns.shape)


def leave_one_out(returns: Float[Array, "B R"], groups: Groups) -> Float[Array, "B R"]:
    """The mean of the problem's other dialogues."""
    return mean_of_others(returns, groups.problem, groups.present)


def leave_one_out_attempt(returns: Float[Array, "B R"], groups: Groups) -> Float[Array, "B R"]:
    """First attempts: the problem's other ones; later turns: dialogues with the same first."""
    first = mean_of_others(returns, groups.problem & ~groups.attempt, groups.present)[:, :1]
    later = mean_of_others(returns, groups.attempt, groups.present)[:, 1:]
    return jnp.concatenate([first, later], axis=1)


BaselineFunction = Callable[[Float[Array, "B R"], Groups], Float[Array, "B R"]]
BASELINES: dict[str, BaselineFunction] = {
    "none": no_baseline,
    "running": running,
    "batch": batch,
    "leave_one_out": leave_one_out,
    "leave_one_out_attempt": leave_one_out_attempt,
}


def turn_means(values: Float[Array, "B R"], present: Bool[Array, "B R"]) -> Float[Array, "R"]:
    """The mean of each turn over the rows that have it."""
    return jnp.where(present, values, 0.0).sum(0) / jnp.maximum(present.sum(0), 1)


def deviation(plain: Float[Array, "B R"], groups: Groups) -> Float[Array, "R"]:
    """The standard deviation of each turn's plain advantage over the batch."""
    centred = plain - turn_means(plain, groups.present)
    return jnp.sqrt(turn_means(jnp.square(centred), groups.present))


def no_normalisation(plain: Float[Array, "B R"], groups: Groups) -> Float[Array, "R"]:
    """One: advantages keep the unit of rewards."""
    return jnp.ones(plain.shape[1])


# From the advantages of the plain reward, unweighted and without bonus: dividing by the shaped
# one's deviation would cancel 1 + alpha and make alpha a no-op.
NORMALISATIONS: dict[str, Callable[[Float[Array, "B R"], Groups], Float[Array, "R"]]] = {
    "none": no_normalisation,
    "batch": deviation,
}


@dataclass(frozen=True, kw_only=True)
class EstimatorConfig:
    """How the gradient of the objective is estimated."""

    kl: str = "exact"  # reward: log-ratio in the return; exact, k2, k3: a per-token loss
    baseline: str = "leave_one_out"  # of BASELINES
    normalise: str = "none"  # of NORMALISATIONS: what advantages are divided by
    length_norm: str = "sum"  # a turn's token losses: summed, / limit, / own length
    mask_truncated: bool = False  # no token of a turn that was cut at its limit is learnt from
    clip: float | None = None  # the probability ratio is cut below 1 - this; None: REINFORCE
    clip_high: Positive | None = None  # and above 1 + this; None: clip
    importance_cap: ImportanceCap = None  # of learner / sampler, by token; "auto": by the dtype

    def __post_init__(self):
        check_fields(self, "estimator")
        for name, choices in (
            ("kl", get_args(Kl)),
            ("baseline", BASELINES),
            ("normalise", NORMALISATIONS),
            ("length_norm", get_args(LengthNorm)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"estimator.{name} is {getattr(self, name)!r}; "
                    f"choose one of {', '.join(choices)}"
                )
        if self.clip is not None and not 0 < self.clip < 1:
            raise ValueError(f"estimator.clip is {self.clip}; set a value in (0, 1) or None")
        if self.clip is None and self.clip_high is not None:
            raise ValueError(
                f"estimator.clip_high is {self.clip_high} without estimator.clip; set both, or None"
            )
        cap = self.importance_cap
        number = isinstance(cap, int | float) and not isinstance(cap, bool)
        if cap not in (None, "auto") and not (number and math.isfinite(cap) and cap >= 1):
            raise ValueError(
                f"estimator.importance_cap is {cap!r}; set a finite value >= 1, None or 'auto'"
            )

    @property
    def clip_range(self) -> tuple[float, float] | None:
        """Bounds of the probability ratio; None: it has none."""
        if self.clip is None:
            return None
        return 1 - self.clip, 1 + (self.clip if self.clip_high is None else self.clip_high)

    def resolved(self, dtype: str) -> "EstimatorConfig":
        """The estimator of a decoder of this type: "auto" becomes a value."""
        if self.importance_cap != "auto":
            return self
        return replace(self, importance_cap=IMPORTANCE_CAPS[dtype])


def turn_advantages(
    objective: Objective,
    estimator: EstimatorConfig,
    rewards: Float[Array, "B R"],
    groups: Groups,
    *,
    alpha: Float[Array, ""] | float,
    penalty: Float[Array, "B R"] | float = 0.0,
    roles: tuple[str, ...],
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """Each turn's return, and the return less its baseline, with the turns' weights intact.

    Args:
      penalty: beta times the log-ratio of each turn, with kl="reward"; in rewards.

    Returns:
      Returns and advantages in rewards (or deviations of the plain reward); 0 where a row
      lacks the turn.
    """
    baseline = BASELINES[estimator.baseline]
    returns = turn_returns(objective, rewards, alpha=alpha, roles=roles) - penalty
    advantages = returns - baseline(returns, groups)
    plain = discounted(rewards, (1.0,) * objective.turns, objective.gamma)
    mean = turn_means(plain, groups.present)
    plain = plain - baseline(plain, groups.replace(running=mean))
    divisor = NORMALISATIONS[estimator.normalise](plain, groups)
    advantages = advantages / jnp.maximum(divisor, SMALLEST_DEVIATION)
    advantages = jnp.where(groups.present, advantages, 0.0)
    return jnp.where(groups.present, returns, 0.0), jax.lax.stop_gradient(advantages)


def token_weights(
    length_norm: str, episodes: Episodes, plan: DialoguePlan, *, mask_truncated: bool = False
) -> Float[Array, "B T"]:
    """What each token's loss counts for, so that a batch's loss is one weighted sum.

    The denominators are those of the whole batch, so that the sum over microbatches
    and devices is exact. Rows that pad a batch don't count, and tokens that are not trained
    weigh 0.

    Args:
      mask_truncated: neither do the tokens of turns that were cut, and a row of which nothing
        else was trained does not count. Its rewards stay in the baselines of the other rows.

    Source: arXiv:2503.14476, section 3.4 (overlong filtering), for what was cut.
    """
    trained, counts = episodes.trained, episodes.present.any(1)
    if mask_truncated:
        kept = trained & ~logprobs.spread_to_tokens(episodes.truncated, episodes.turn)
        counts &= kept.any(1) | ~trained.any(1)
        trained = kept
    scale = jnp.broadcast_to(1.0 / jnp.maximum(counts.sum(), 1), episodes.present.shape)
    if length_norm == "constant":
        scale = scale / jnp.asarray(plan.limits)
    elif length_norm == "sequence":
        lengths = logprobs.sum_by_turn(trained.astype(float), episodes.turn, plan.turns)
        scale = scale / jnp.maximum(lengths, 1.0)
    return jnp.where(trained, logprobs.spread_to_tokens(scale, episodes.turn), 0.0)


def policy_loss(
    clip_range: tuple[float, float] | None,
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
) -> Float[Array, "B T"]:
    """The per-token loss whose gradient is the policy gradient.

    Args:
      clip_range: beyond these bounds of the probability ratio a token is pushed no further.
      old_logprobs: the learner's before the first update, not the sampler's: what rounding
        puts between those two is not movement, and has a weight of its own.

    Source: arXiv:1707.06347, eq. 7, for the clipped form; arXiv:2503.14476, section 3.1, for a
    higher bound above, which leaves unlikely tokens room to grow.
    """
    if clip_range is None:
        return -advantages * logprobs
    ratio = jnp.exp(logprobs - old_logprobs)
    clipped = jnp.clip(ratio, *clip_range)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def kl_terms(
    kl: str, scores: TokenScores, part: Batch
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The per-token KL loss, and the estimate that is logged."""
    if part.scores is None or kl == "exact":
        return scores.kl, scores.kl
    estimate = logprobs.k3(scores.logprobs, part.scores.logprobs)
    losses = {"k2": logprobs.k2(scores.logprobs, part.scores.logprobs), "k3": estimate}
    return losses.get(kl, jnp.zeros_like(estimate)), estimate
