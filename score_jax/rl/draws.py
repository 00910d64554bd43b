"""How one token is drawn, and how drafts are guessed: pure functions of a row."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from score_jax.rl.logprobs import in_groups, log_softmax, select_logprob

SMALL = 4096  # ids; a vocabulary up to it is drawn from in one step


def sample_token(
    keys: Key[Array, "..."], logits: Float[Array, "... V"], temperature: float
) -> Int[Array, "..."]:
    """Draws one token for each key; argmax at temperature 0.

    A large vocabulary is cut into groups of ids: a group is drawn by its total probability, then
    an id of that group. The distribution is the same, for some thousand random numbers instead
    of one for each id, which cost a CPU as much as the model does.
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature
    if logits.shape[-1] <= SMALL:
        return draw(keys, logits)
    groups = in_groups(logits, -jnp.inf)
    own = split(keys)
    group = draw(own[..., 0], jax.nn.logsumexp(groups, axis=-1))
    inside = jnp.take_along_axis(groups, group[..., None, None], axis=-2)[..., 0, :]
    return group * groups.shape[-1] + draw(own[..., 1], inside)


def draw(keys: Key[Array, "..."], logits: Float[Array, "... V"]) -> Int[Array, "..."]:
    """The largest of logits plus Gumbel noise, each row's from its own key."""
    flat = logits.reshape(-1, logits.shape[-1])
    found = jax.vmap(jax.random.categorical)(keys.reshape(-1), flat)
    return found.reshape(keys.shape).astype(jnp.int32)


def split(keys: Key[Array, "..."]) -> Key[Array, "... 2"]:
    """Two keys of each."""
    return jax.vmap(jax.random.split)(keys.reshape(-1)).reshape(*keys.shape, 2)


def sample_scored(
    keys: Key[Array, "..."], logits: Float[Array, "... V"], temperature: float
) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """Drawn tokens and their log-probabilities in nats, at temperature 1."""
    tokens = sample_token(keys, logits, temperature)
    return tokens, select_logprob(log_softmax(logits), tokens)


def guess_continuation(
    tokens: Int[Array, "B T"],
    length: Int[Array, "B"],
    earlier: Bool[Array, "B T"],
    begun: Int[Array, "B"],
    count: int,
) -> Int[Array, "B k"]:
    """Guesses a row's next tokens: what followed its last two tokens in an earlier turn.

    The last place in which those two stand counts that has enough tokens of its turn behind it;
    where they stand nowhere, a place of the last one alone. A turn of one token so far goes on as
    an earlier turn that began with it.

    Args:
      earlier: marks the tokens that are searched.
      begun: tokens of the current turn so far, the last of `tokens` included.
      count: k.

    Source: prompt-lookup decoding (github.com/apoorvumang/prompt-lookup-decoding), with the
    first attempt in the prompt's place.
    """
    places = jnp.arange(tokens.shape[1])[None, :]
    last, before = (
        jnp.take_along_axis(tokens, jnp.maximum(length - n, 0)[:, None], axis=1) for n in (1, 2)
    )
    same = earlier & (tokens == last)
    both = same & (jnp.roll(tokens, 1, axis=1) == before) & (begun >= 2)[:, None]
    first = same & (jnp.cumsum(earlier, axis=1) == 1) & (begun == 1)[:, None]
    # The best kind of match counts; of one kind a place with enough behind it, then the last one.
    kind = jnp.where(both | first, 2, jnp.where(same, 1, 0))
    ahead = jnp.pad(earlier[:, count:], ((0, 0), (0, count)))
    at = jnp.argmax((2 * kind + ahead) * tokens.shape[1] + places, axis=1)
    found = at[:, None] + 1 + jnp.arange(count)[None, :]
    return jnp.take_along_axis(tokens, jnp.minimum(found, tokens.shape[1] - 1), axis=1)
