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


def mismatch_sums(
    sampler: Float[Array, "B T"], learner: Float[Array, "B T"], turn: Int[Array, "B T"], turns: int
) -> dict[str, Array]:
    """Sums by turn, maxima by turn, and counts above EDGES, to be added up over a batch."""
    own = turn > 0
    sampler, learner = jnp.where(own, sampler, 0.0), jnp.where(own, learner, 0.0)
    mismatch = jnp.abs(sampler - learner)
    by_turn = jnp.where(turn_mask(turn, turns) > 0, mismatch[:, None, :], 0.0)  # B R T
    above = by_turn[..., None] > EDGES  # B R T E, never held: compared and counted in one go
    return {
        "mismatch_sum": by_turn.sum((0, 2)),
        "mismatch_max": by_turn.max((0, 2)),
        "mismatch_above": above.sum((0, 2), dtype=jnp.int32),
        "mismatch_kl": sum_by_turn(k3(sampler, learner), turn, turns).sum(0),
    }


def mismatch_metrics(
    sums: dict[str, Array], tokens: Float[Array, "R"], rows: int
) -> dict[str, Float[Array, "R"]]:
    """The mismatch of each turn in nats.

    Args:
      sums: of `mismatch_sums`, over all parts.
      tokens: the policy's tokens in each turn.

    Returns:
      mean; trimmed, the mean of all tokens but the largest, which stops a run; p99.9,
      the percentile to within 10% below 10 nats; max; and kl, an estimate of
      KL(sampler || learner) of a whole turn.
    """
    total, largest = sums["mismatch_sum"], sums["mismatch_max"]
    within = sums["mismatch_above"] <= TAIL * tokens[:, None]  # R E, False then True
    tail = jnp.where(within.any(1), jnp.asarray(EDGES)[jnp.argmax(within, axis=1)], jnp.inf)
    return {
        "mismatch/mean": total / jnp.maximum(tokens, 1.0),
        "mismatch/trimmed": (total - largest) / jnp.maximum(tokens - 1.0, 1.0),
        "mismatch/p99.9": jnp.minimum(tail, largest),
        "mismatch/max": largest,
        "mismatch/kl": sums["mismatch_kl"] / rows,
    }
