"""Log-probabilities, KL estimators and masked sums, as plain array functions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def log_softmax(logits: Float[Array, "... V"]) -> Float[Array, "... V"]:
    """Log-probabilities in float32, whatever the logits' type."""
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)


def select_logprob(
    logprobs: Float[Array, "... V"], tokens: Int[Array, "..."]
) -> Float[Array, "..."]:
    """The log-probability of each given token."""
    return jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]


def entropy(logprobs: Float[Array, "... V"]) -> Float[Array, "..."]:
    """Entropy in nats of each distribution."""
    return -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)


def exact_kl(
    policy: Float[Array, "... V"], reference: Float[Array, "... V"]
) -> Float[Array, "..."]:
    """KL(policy || reference) in nats, summed over the vocabulary; both are log-probabilities.

    Differentiating it gives the reverse-KL gradient of this position.
    """
    return jnp.sum(jnp.exp(policy) * (policy - reference), axis=-1)


def k2(policy: Float[Array, "..."], reference: Float[Array, "..."]) -> Float[Array, "..."]:
    """Half the squared log-ratio of sampled tokens, as a loss.

    Its gradient is log-ratio times score, whose expectation under the policy is
    the reverse-KL gradient. Its value is a biased estimate of the KL.

    Source: http://joschu.net/blog/kl-approx.html.
    """
    return 0.5 * jnp.square(policy - reference)


def k3(policy: Float[Array, "..."], reference: Float[Array, "..."]) -> Float[Array, "..."]:
    """The low-variance KL estimate of sampled tokens: exp(-r) - 1 + r for log-ratio r.

    Its value is unbiased and never negative, but as a loss its gradient is that of
    the forward KL(reference || policy), not of the reverse one.

    Source: http://joschu.net/blog/kl-approx.html.
    """
    ratio = reference - policy
    return jnp.expm1(ratio) - ratio


def turn_mask(turn: Int[Array, "B T"], turns: int) -> Float[Array, "B R T"]:
    """1.0 where a token belongs to turn r + 1."""
    return (turn[:, None, :] == jnp.arange(1, turns + 1)[None, :, None]).astype(jnp.float32)


def sum_by_turn(
    values: Float[Array, "B T"], turn: Int[Array, "B T"], turns: int
) -> Float[Array, "B R"]:
    """Sums per-token values over the tokens of each turn; no product, which a TPU would round."""
    return jnp.sum(values[:, None, :] * turn_mask(turn, turns), axis=-1)


def spread_to_tokens(values: Float[Array, "B R"], turn: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Gives every token its turn's value, and 0 to the tokens of no turn."""
    padded = jnp.pad(values, ((0, 0), (1, 0)))  # B R+1
    return jnp.take_along_axis(padded, turn, axis=1)
