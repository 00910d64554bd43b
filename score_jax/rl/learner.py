"""The learner: reference scores, the shaped policy gradient, one update.

A batch's loss is one weighted sum over tokens, with the denominators of the whole batch, so
splitting it into minibatches, microbatches or device shards does not change it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from score_jax.checks import Count, Decay, check_fields
from score_jax.model.decoder import Decoder
from score_jax.rl import logprobs
from score_jax.rl.mismatch import importance_weights, mismatch_metrics, mismatch_sums
from score_jax.rl.objectives import (
    Objective,
    policy_loss,
    token_weights,
    turn_advantages,
    turn_log_ratio,
    turn_returns,
)
from score_jax.rl.scoring import hidden_states, score_tokens
from score_jax.types import Batch, Episodes, Params, Scores, TokenScores, TrainState

Loss = Callable[[Params, Any], tuple[Float[Array, ""], dict[str, Array]]]


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """How a batch is split to save memory, and how many updates use it."""

    microbatches: Count = 1  # parts of a minibatch whose gradients are accumulated
    minibatches: Count = 1  # updates per rollout; above 1 needs objective.clip
    logits_chunk: Count = 128  # positions per row whose logits are held at a time
    baseline_decay: Decay = (
        0.9  # of the running baseline, per rollout; 0: only the last rollout counts
    )

    def __post_init__(self):
        check_fields(self, "learner")


def split_rows(tree: Any, parts: int) -> Any:
    """Splits rows into parts such that every device keeps its own rows."""
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), tree
    )


def join_rows(tree: Any) -> Any:
    """Undoes `split_rows`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def score_episodes(
    decoder: Decoder,
    params: Params,
    episodes: Episodes,
    *,
    max_policy_tokens: int,
    config: LearnerConfig,
    keep_hidden: bool,
) -> Scores:
    """The reference's scores of sampled dialogues; needs no rewards."""

    def one(part: Episodes) -> Scores:
        hidden = hidden_states(decoder, params, part.tokens)
        if keep_hidden:  # the update computes the exact KL, since it needs the policy
            return Scores(logprobs=jnp.zeros(part.turn.shape), hidden=hidden)
        scores = score_tokens(
            decoder,
            params,
            hidden,
            part,
            max_policy_tokens=max_policy_tokens,
            logits_chunk=config.logits_chunk,
        )
        return Scores(logprobs=scores.logprobs, hidden=None)

    parts = config.microbatches * config.minibatches
    return join_rows(jax.lax.map(one, split_rows(episodes, parts)))


Compose = Callable[[Params, Params], Params]  # (trained parameters, reference) -> policy


def all_trained(params: Params, _: Params) -> Params:
    """The policy's parameters in full fine-tuning: the trained ones."""
    return params


def kl_terms(
    objective: Objective, scores: TokenScores, batch: Batch
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The per-token KL loss of the objective, and the estimate that is logged."""
    if objective.kl == "exact":
        return scores.kl, scores.kl
    own = batch.episodes.turn > 0
    policy = jnp.where(own, scores.logprobs, 0.0)
    reference = jnp.where(own, batch.scores.logprobs, 0.0)
    estimate = logprobs.k3(policy, reference)
    losses = {"k2": logprobs.k2(policy, reference), "k3": estimate}
    return losses.get(objective.kl, jnp.zeros_like(policy)), estimate


def batch_loss(
    decoder: Decoder,
    params: Params,
    reference_params: Params,
    batch: Batch,
    *,
    objective: Objective,
    max_policy_tokens: int,
    logits_chunk: int,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The weighted sum of the token losses of rows, and sums for the metrics."""
    episodes = batch.episodes
    hidden = hidden_states(decoder, params, episodes.tokens)
    reference = None
    if objective.kl == "exact":
        assert batch.scores.hidden is not None, "exact KL needs the reference's hidden states"
        reference = (reference_params, batch.scores.hidden)
    scores = score_tokens(
        decoder,
        params,
        hidden,
        episodes,
        max_policy_tokens=max_policy_tokens,
        logits_chunk=logits_chunk,
        reference=reference,
    )
    kl_loss, kl_estimate = kl_terms(objective, scores, batch)
    beta = logprobs.spread_to_tokens(
        jnp.broadcast_to(jnp.asarray(objective.beta), episodes.rewards.shape), episodes.turn
    )
    before = batch.logprobs
    if before is None:
        before = jax.lax.stop_gradient(scores.logprobs)
    cap = objective.importance_cap
    assert cap != "auto", "an objective is resolved before it is built into a program"
    importance, capped = importance_weights(before, episodes.logprobs, cap)
    token_loss = policy_loss(objective, scores.logprobs, before, batch.advantages)
    loss = jnp.sum(batch.weights * (importance * token_loss + beta * kl_loss))

    turn, turns = episodes.turn, objective.turns
    return loss, {
        "loss": loss,
        "kl": logprobs.sum_by_turn(kl_estimate, turn, turns).sum(0),
        "entropy": logprobs.sum_by_turn(scores.entropy, turn, turns).sum(0),
        "capped": logprobs.sum_by_turn(capped, turn, turns).sum(0),
        **mismatch_sums(episodes.logprobs, before, turn, turns),
    }


def accumulate(total: dict[str, Array], part: dict[str, Array]) -> dict[str, Array]:
    """Adds sums; of maxima it keeps the larger."""
    return {
        name: jnp.maximum(total[name], part[name]) if name.endswith("_max") else total[name] + value
        for name, value in part.items()
    }


def accumulated_gradient(
    loss: Loss, params: Params, batch: Any, microbatches: int
) -> tuple[Params, dict[str, Array]]:
    """Gradient and metric sums of a batch, one microbatch in memory at a time."""
    gradient_of = jax.grad(loss, has_aux=True)
    parts = split_rows(batch, microbatches)

    def add(total: tuple, part: Any) -> tuple[tuple, None]:
        gradient, sums = gradient_of(params, part)
        return (jax.tree.map(jnp.add, total[0], gradient), accumulate(total[1], sums)), None

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(gradient_of, params, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def running_mean(
    average: Float[Array, "R"], step: Int[Array, ""], decay: float
) -> Float[Array, "R"]:
    """A decaying average that began at 0, as the mean of the values that went into it.

    Without the correction the first baselines would be too near to 0.

    Args:
      step: values so far; before the first the mean is 0.

    Source: arXiv:1412.6980, section 3 (initialisation bias).
    """
    return jnp.where(step > 0, average / (1 - decay ** jnp.maximum(step, 1)), 0.0)


def update(
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    reference_params: Params,
    episodes: Episodes,
    scores: Scores,
    *,
    objective: Objective,
    config: LearnerConfig,
    group_size: int,
    second_attempts: int,
    turn_limit: int,
    compose: Compose = all_trained,
) -> tuple[TrainState, dict[str, Array]]:
    """Learns from one rollout: advantages of the whole batch, then each minibatch once.

    Args:
      compose: makes the policy of what is trained and the reference; with an adapter
        (model.lora.attach) that is not the whole model.

    Returns:
      The new state, and metrics per turn: kl (nats per turn), entropy (nats per
      token), return, advantage_std, mismatch_metrics between sampler and learner.
    """
    turns = objective.turns
    max_policy_tokens = min(turns * turn_limit, episodes.tokens.shape[1])
    before, kl = None, jnp.zeros_like(episodes.rewards)
    if objective.kl == "reward" or config.minibatches > 1:  # needed before the loss finds them
        policy = compose(state.params, reference_params)
        score = partial(
            score_episodes,
            decoder,
            max_policy_tokens=max_policy_tokens,
            config=config,
            keep_hidden=False,
        )
        before = score(policy, episodes).logprobs
        kl = turn_log_ratio(episodes.replace(logprobs=before), scores.logprobs, turns)
    running = running_mean(state.baseline, state.step, config.baseline_decay)
    advantages = turn_advantages(
        objective,
        episodes.rewards,
        kl,
        running,
        group_size=group_size,
        second_attempts=second_attempts,
    )
    batch = Batch(
        episodes=episodes,
        scores=scores,
        advantages=logprobs.spread_to_tokens(advantages, episodes.turn),
        # A minibatch's loss is a mean over its own rows.
        weights=token_weights(objective, episodes.turn, limit=turn_limit) * config.minibatches,
        logprobs=before,
    )

    def loss(params: Params, part: Batch) -> tuple[Float[Array, ""], dict[str, Array]]:
        return batch_loss(
            decoder,
            compose(params, reference_params),
            reference_params,
            part,
            objective=objective,
            max_policy_tokens=max_policy_tokens,
            logits_chunk=config.logits_chunk,
        )

    def one_minibatch(carry: tuple[Params, Any], part: Batch) -> tuple[tuple[Params, Any], dict]:
        params, opt_state = carry
        gradient, sums = accumulated_gradient(loss, params, part, config.microbatches)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        sums["gradient_norm"] = optax.tree.norm(gradient)
        return (optax.apply_updates(params, updates), opt_state), sums

    (params, opt_state), sums = jax.lax.scan(
        one_minibatch, (state.params, state.opt_state), split_rows(batch, config.minibatches)
    )
    returns = turn_returns(objective, episodes.rewards, kl).mean(0)
    decay = config.baseline_decay
    state = state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        baseline=decay * state.baseline + (1 - decay) * returns,
    )
    metrics = summarise(sums, episodes, returns, advantages)
    if objective.importance_cap is None:
        metrics = {k: v for k, v in metrics.items() if not k.startswith("importance_capped/")}
    return state, metrics


def summarise(
    sums: dict[str, Array],
    episodes: Episodes,
    returns: Float[Array, "R"],
    advantages: Float[Array, "B R"],
) -> dict[str, Array]:
    """Metrics of one update, by name and turn."""
    rows, turns = episodes.rewards.shape
    lengths = logprobs.sum_by_turn(jnp.ones(episodes.turn.shape), episodes.turn, turns)
    tokens = jnp.maximum(lengths.sum(0), 1.0)
    whole = {  # over the minibatches
        name: part.max(0) if name.endswith("_max") else part.sum(0) for name, part in sums.items()
    }
    right = episodes.rewards >= 1.0
    first, last = right[:, 0], right[:, -1]
    metrics = {
        "loss": sums["loss"].mean(),
        "gradient_norm": sums["gradient_norm"].mean(),
        "mismatch/max": whole["mismatch_max"].max(),
        "mismatch/mean": whole["mismatch_sum"].sum() / tokens.sum(),
        "delta": last.mean() - first.mean(),
        "delta_i_to_c": (last & ~first).mean(),
        "delta_c_to_i": (first & ~last).mean(),
    }
    per_turn = {
        "accuracy": right.mean(0),
        "reward": episodes.rewards.mean(0),
        "return": returns,
        "kl": whole["kl"] / rows,
        "entropy": whole["entropy"] / tokens,
        "advantage_std": advantages.std(0),
        "length": lengths.mean(0),
        "truncated": episodes.truncated.mean(0),
        "importance_capped": whole["capped"] / tokens,
        **mismatch_metrics(whole, lengths.sum(0), rows),
    }
    for name, values in per_turn.items():
        for turn in range(turns):
            metrics[f"{name}/turn{turn + 1}"] = values[turn]
    return metrics
