"""Cross-entropy on the policy's tokens: pre-training, STaR, Pair-SFT."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from score_jax.model.decoder import Decoder
from score_jax.scoring import hidden_states, score_tokens
from score_jax.step import LearnerConfig, accumulated_gradient
from score_jax.types import Episodes, Params, TrainState


def supervised_update(
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    episodes: Episodes,
    *,
    config: LearnerConfig,
    most: int,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser update on worked dialogues.

    Returns:
      The new state, and the loss in nats per token over the whole batch.
    """
    tokens = jnp.sum(episodes.turn > 0)

    def loss(params: Params, part: Episodes) -> tuple[Float[Array, ""], dict[str, Array]]:
        hidden = hidden_states(decoder, params, part.tokens)
        scores = score_tokens(decoder, params, hidden, part, most=most, chunk=config.chunk)
        value = -scores.logprobs.sum() / tokens
        return value, {"loss": value}

    gradient, sums = accumulated_gradient(loss, state.params, episodes, config.microbatches)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
    )
    return state, {**sums, "gradient_norm": optax.tree.norm(gradient)}
