"""Log-probabilities, KL estimators and masked sums, as plain array functions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

GROUPS = 128  # of the vocabulary's ids


def log_softmax(logits: Float[Array, "... V"]) -> Float[Array, "... V"]:
    """Log-probabilities in float32, whatever the logits' type."""
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)


def select_logprob(
    logprobs: Float[Array, "... V"], tokens: Int[Array, "..."]
) -> Float[Array, "..."]:
    """The log-probability of each given token."""
    return jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]


def in_groups(values: Float[Array, "... V"], fill: float) -> Float[Array, "... 128 v"]:
    """The vocabulary cut into groups of ids; `fill` stands where the last ones have none."""
    size = -(-values.shape[-1] // GROUPS)
    missing = GROUPS * size - values.shape[-1]
    if missing:
        padding = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
        values = jnp.pad(values, padding, constant_values=fill)
    return values.reshape(*values.shape[:-1], GROUPS, size)


def vocabulary_sums(*terms: Float[Array, "... V"]) -> tuple[Float[Array, "..."], ...]:
    """The sum of each term over the vocabulary.

    On a CPU all in one pass, by groups of ids: one term after the other, sums of exp(x) * x take
    several times as long (docs/speed.md), and a sum of all ids in their order loses two digits.
    """

    def add(x: list[Array], y: list[Array]) -> list[Array]:
        return list(map(jnp.add, x, y))

    def together(*terms: Array) -> tuple[Array, ...]:
        groups = [in_groups(x, 0.0) for x in terms]
        zeros = [jnp.zeros((), x.dtype) for x in groups]
        parts = jax.lax.reduce(groups, zeros, add, (groups[0].ndim - 1,))
        return tuple(part.sum(-1) for part in parts)

    def apart(*terms: Array) -> tuple[Array, ...]:
        return tuple(x.sum(-1) for x in terms)

    return jax.lax.platform_dependent(*terms, cpu=together, default=apart)


def exact_kl(
    policy: Float[Array, "... V"], reference: Float[Array, "... V"]
) -> Float[Array, "..."]:
    """KL(policy || reference) in nats, summed over the vocabulary; both are log-probabilities.

    Differentiating it gives the reverse-KL gradient of this position.
    """
    probs = jnp.exp(policy)
    # Beside another sum, since a CPU takes several times as long for this one alone.
    return vocabulary_sums(probs, probs * (policy - reference))[1]


# What `gradient_of_scores` needs: logits, their log-sum-exp, tokens, the reference's logits,
# entropy and exact KL.
Residuals = tuple[Array, Array, Array, Array | None, Array, Array]


def score_logits(
    logits: Float[Array, "... V"],
    tokens: Int[Array, "..."],
    reference: Float[Array, "... V"] | None,
) -> tuple[tuple[Float[Array, "..."], ...], Residuals]:
    """Log-probability of the tokens, entropy, and exact KL to the reference's logits or 0.

    Returns:
      The three, and what `gradient_of_scores` takes.
    """
    largest = jnp.max(logits, axis=-1, keepdims=True)
    shifted = logits - largest
    shares = jnp.exp(shifted)
    mass, moment = vocabulary_sums(shares, shares * shifted)
    entropy = jnp.log(mass) - moment / mass
    total = largest + jnp.log(mass)[..., None]
    kl = jnp.zeros(tokens.shape, logits.dtype)
    if reference is not None:
        kl = exact_kl(logits - total, log_softmax(reference))
    found = select_logprob(logits - total, tokens), entropy, kl
    return found, (logits, total, tokens, reference, entropy, kl)


def gradient_of_scores(
    residuals: Residuals, slopes: tuple[Float[Array, "..."], ...]
) -> Float[Array, "... V"]:
    """The gradient of `score_logits` by logits; the reference gets none.

    In closed form it is one pass over the vocabulary, from d log p(v) / d z(w) = [v = w] - p(w);
    derived by rule it takes a scatter and several passes.

    Args:
      slopes: by the three scores.
    """
    logits, total, tokens, reference, *means = residuals
    of_chosen, of_entropy, of_kl = (x[..., None] for x in slopes)
    own_entropy, own_kl = (x[..., None] for x in means)
    logprobs = logits - total
    chosen = jnp.arange(logits.shape[-1]) == tokens[..., None]
    slope = -of_chosen - of_entropy * (logprobs + own_entropy)
    if reference is not None:
        slope += of_kl * (logprobs - log_softmax(reference) - own_kl)
    return jnp.exp(logprobs) * slope + jnp.where(chosen, of_chosen, 0.0)


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
