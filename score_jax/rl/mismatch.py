"""The mismatch of sampler and learner on the sampled tokens, and its correction.

Both compute the same policy, one a token at a time over a cache, the other by whole rows,
and rounding makes them differ. In bfloat16 single tokens differ by tenths of a nat, and the
largest difference grows with the number of tokens; the mean stays small. A fault in weights,
positions or masks moves the mean. So a run stops on the mean of a turn, never on one finite
token, and each token's loss is multiplied by its probability under the learner over that under
the sampler, truncated at a cap.

Source: https://fengyao.notion.site/off-policy-rl (Yao et al. 2025: truncated importance
sampling by token, cap 2); for the truncation doi:10.1198/106186008X320456 (Ionides 2008).
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from score_jax.rl.logprobs import k3, sum_by_turn, turn_mask
from score_jax.rl.metrics import Metric, largest, mean, total

ImportanceCap = float | Literal["auto"] | None

# By the decoder's dtype. docs/method.md gives the mismatch of sound and of faulty runs.
MISMATCH_LIMITS: dict[str, float] = {"float32": 0.001, "bfloat16": 0.05}  # nats a token
IMPORTANCE_CAPS: dict[str, float | None] = {"float32": None, "bfloat16": 2.0}
TAIL = 0.001  # share of tokens above the 99.9th percentile
EDGES = np.geomspace(1e-7, 10.0, 8 * 24 + 1, dtype=np.float32)  # nats; steps of 10%


def importance_weights(
    learner: Float[Array, "B T"], sampler: Float[Array, "B T"], cap: float | None
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The factor of each token's policy loss, and 1.0 where it was truncated, else 0.0.

    Args:
      learner: nats, of the learner's policy before the update.
      sampler: nats, of the distribution that the tokens were drawn from.
      cap: the largest weight; None: all weights are 1.
    """
    if cap is None:
        return jnp.ones_like(learner), jnp.zeros_like(learner)
    ratio = jax.lax.stop_gradient(jnp.exp(learner - sampler))
    return jnp.minimum(ratio, cap), (ratio > cap).astype(jnp.float32)


def mismatch_parts(
    sampler: Float[Array, "B T"], learner: Float[Array, "B T"], turn: Int[Array, "B T"], turns: int
) -> dict[str, Metric]:
    """What `mismatch_metrics` is made of, by turn, to be merged over a batch.

    Args:
      turn: of sampled tokens, 0 at all others.
    """
    own = turn > 0
    sampler, learner = jnp.where(own, sampler, 0.0), jnp.where(own, learner, 0.0)
    mismatch = jnp.abs(sampler - learner)
    by_turn = jnp.where(turn_mask(turn, turns) > 0, mismatch[:, None, :], 0.0)  # B R T
    above = by_turn[..., None] > EDGES  # B R T E, never held: compared and counted in one go
    return {
        "mismatch/sum": total(by_turn.sum((0, 2)), "nats"),
        "mismatch/max": largest(by_turn.max((0, 2)), "nats"),
        "mismatch/above": total(above.sum((0, 2), dtype=jnp.int32)),
        "mismatch/kl": total(sum_by_turn(k3(sampler, learner), turn, turns).sum(0), "nats"),
    }


def mismatch_metrics(
    parts: dict[str, Metric], tokens: Float[Array, "R"], rows: Float[Array, "R"]
) -> dict[str, Metric]:
    """The mismatch of each turn.

    Args:
      parts: of `mismatch_parts`, over the whole batch.
      tokens: that were sampled in each turn.
      rows: that have each turn.

    Returns:
      mean; trimmed, the mean of all tokens but the largest, which stops a run; p99.9,
      the percentile to within 10% below 10 nats; max; and kl, an estimate of
      KL(sampler || learner) of a whole turn.
    """
    summed, worst = parts["mismatch/sum"].total, parts["mismatch/max"].total
    within = parts["mismatch/above"].total <= TAIL * tokens[:, None]  # R E, False then True
    tail = jnp.where(within.any(1), jnp.asarray(EDGES)[jnp.argmax(within, axis=1)], jnp.inf)
    return {
        "mismatch/mean": mean(summed, tokens, "nats"),
        "mismatch/trimmed": mean(summed - worst, jnp.maximum(tokens - 1.0, 0.0), "nats"),
        "mismatch/p99.9": largest(jnp.minimum(tail, worst), "nats"),
        "mismatch/max": largest(worst, "nats"),
        "mismatch/kl": mean(parts["mismatch/kl"].total, rows, "nats"),
    }
