"""Cross-entropy on the policy's tokens: pre-training, STaR, Pair-SFT."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from score_jax.model.decoder import Decoder
from score_jax.scoring import hidden_states, score_tokens
from score_jax.step import LearnerConfig, accumulated_gradient
from score_jax.types import Episodes, Params, TrainState


def random_move(params: Params, key: Key[Array, ""], share: float) -> Params:
    """Parameters a random step away.

    Args:
      share: length of each tensor's step, of the tensor's own norm (in expectation).
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(
        leaf + share * jnp.sqrt(jnp.mean(leaf**2)) * jax.random.normal(own, leaf.shape)
        for own, leaf in zip(keys, leaves, strict=True)
    )


def supervised_update(
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    episodes: Episodes,
    *,
    config: LearnerConfig,
    most: int,
    noise: float = 0.0,
    seed: int = 0,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser update on worked dialogues.

    With noise the gradient is that of the loss a random step away, another one for every
    update: what is learnt is a place whose surroundings are good as well, not a narrow one.

    Args:
      noise: length of that step, of each tensor's norm.
      seed: of the random steps.

    Returns:
      The new state, and the loss in nats per token over the whole batch.

    Source: LPF-SGD, arXiv:2201.08025, with one random step per update and tensors as filters.
    """
    tokens = jnp.sum(episodes.turn > 0)

    def loss(params: Params, part: Episodes) -> tuple[Float[Array, ""], dict[str, Array]]:
        hidden = hidden_states(decoder, params, part.tokens)
        scores = score_tokens(decoder, params, hidden, part, most=most, chunk=config.chunk)
        value = -scores.logprobs.sum() / tokens
        return value, {"loss": value}

    params = state.params
    if noise:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        params = random_move(params, key, noise)
    gradient, sums = accumulated_gradient(loss, params, episodes, config.microbatches)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
    )
    return state, {**sums, "gradient_norm": optax.tree.norm(gradient)}
