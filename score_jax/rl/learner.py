"""The learner: reference scores, the shaped policy gradient or a likelihood, one update.

A batch's loss is one weighted sum over tokens, with the denominators of the whole batch, so
splitting it into minibatches, microbatches or device shards does not change it. Reinforcement
and supervised learning differ by the advantages and weights of the tokens alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from score_jax.checks import Count, Decay, Natural, Share, check_fields
from score_jax.model.decoder import Decoder
from score_jax.rl import coefficients, metrics
from score_jax.rl.coefficients import CoefficientsConfig
from score_jax.rl.dialogue import DialoguePlan
from score_jax.rl.estimators import (
    EstimatorConfig,
    Groups,
    group_rows,
    kl_terms,
    policy_loss,
    token_weights,
    turn_advantages,
    turn_means,
)
from score_jax.rl.logprobs import spread_to_tokens, sum_by_turn
from score_jax.rl.metrics import Metric, largest, mean, total
from score_jax.rl.mismatch import importance_weights, mismatch_metrics, mismatch_parts
from score_jax.rl.objectives import Objective
from score_jax.rl.packing import (
    Microbatches,
    Places,
    join_rows,
    pack,
    pack_batch,
    packed_episodes,
    padding,
    places_of,
    split_batch,
    split_rows,
    spread,
)
from score_jax.rl.scoring import hidden_states, score_tokens
from score_jax.types import Batch, Episodes, Params, Scores, TokenScores, TrainState

# Logits that a device holds at a time, at most. Fewer than that are kept for the backward pass.
LOGITS_BYTES = 2**29

Loss = Callable[[Params, Batch, Places | None], tuple[Float[Array, ""], dict[str, Metric]]]


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """How a batch is split to save memory, and how many updates use it."""

    microbatches: Count = 1  # parts of a minibatch whose gradients are accumulated
    minibatches: Count = 1  # updates per rollout; above 1 needs estimator.clip
    pack: bool = True  # several dialogues in one row; False: a row each, padded to the limit
    # Positions per row whose logits are computed at a time; 0: as memory and work ask for.
    logits_chunk: Natural = 0
    baseline_decay: Decay = (
        0.9  # of the running baseline, per rollout; 0: only the last rollout counts
    )
    # Supervised only: gradients are taken a random step away, of this share of each tensor's
    # norm, another one for every update; it favours wide optima.
    weight_noise: Share = 0.0

    def __post_init__(self):
        check_fields(self, "learner")


Compose = Callable[[Params, Params], Params]  # (trained parameters, reference) -> policy


def all_trained(params: Params, _: Params) -> Params:
    """The policy's parameters in full fine-tuning: the trained ones."""
    return params


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What all updates of a run share, and no update changes."""

    decoder: Decoder
    optimizer: optax.GradientTransformation
    max_tokens: int  # of a row that are scored, at most
    config: LearnerConfig = field(default_factory=LearnerConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    # Makes the policy; with an adapter (model.lora.attach) what is trained is not all of it.
    compose: Compose = all_trained
    seed: int = 0  # of the random steps of config.weight_noise
    row_shards: int = 1  # parts of the rows that devices hold; each is packed by itself


def begin(learner: Learner, params: Params, objective: Objective) -> TrainState:
    """The train state before the first update of `params`."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=learner.optimizer.init(params),
        baseline=jnp.zeros(objective.turns),
        coefficients=coefficients.initial(objective),
    )


def score_episodes(
    learner: Learner, params: Params, episodes: Episodes, *, keep_hidden: bool = False
) -> Scores:
    """The scores of dialogues under the policy or the reference; needs no rewards.

    Args:
      keep_hidden: keep the hidden states instead, of which the update makes the exact KL.
    """
    config = learner.config
    parts = config.microbatches * config.minibatches

    def one(part: Episodes, places: Places | None = None) -> Scores:
        hidden = hidden_states(learner.decoder, params, part.tokens, places)
        if keep_hidden:
            return Scores(logprobs=jnp.zeros(part.turn.shape), hidden=hidden)
        scores = token_scores(learner, params, hidden, part, places)
        return Scores(logprobs=scores.logprobs, hidden=None)

    if not config.pack:
        return join_rows(jax.lax.map(one, split_rows(episodes, parts)))
    packing = pack(episodes, shards=learner.row_shards, microbatches=parts)

    def part(index: Int[Array, ""]) -> tuple[Places, Scores]:
        places = places_of(packing, index)
        return places, one(packed_episodes(places, episodes), places)

    def put(index: Int[Array, ""], found: Scores) -> Scores:
        places, scores = part(index)
        return jax.tree.map(partial(spread, places), found, scores)

    shapes = jax.eval_shape(lambda: part(jnp.array(0))[1])
    rows = episodes.tokens.shape
    empty = jax.tree.map(lambda x: jnp.zeros((*rows, *x.shape[2:]), x.dtype), shapes)
    return jax.lax.fori_loop(0, packing.microbatches, put, empty)


def token_scores(
    learner: Learner,
    params: Params,
    hidden: Float[Array, "B T D"],
    episodes: Episodes,
    places: Places | None,
    reference: tuple[Params, Float[Array, "B T D"]] | None = None,
) -> TokenScores:
    """The scores of a microbatch's tokens; of packed ones, each shard's stand in one row."""
    rows, length = episodes.tokens.shape
    most, chunk, keep = logits_chunks(learner, rows, length, places and places.row.shape[1])
    return score_tokens(
        learner.decoder,
        params,
        hidden,
        episodes,
        max_tokens=most,
        logits_chunk=chunk,
        keep_logits=keep,
        reference=reference,
    )


def logits_chunks(
    learner: Learner, rows: int, length: int, packed: int | None
) -> tuple[int, int, bool]:
    """How the logits of a microbatch are made.

    Args:
      rows: of the microbatch; of packed tokens, the shards.
      length: of each.
      packed: packed rows that stand in each; None: rows are dialogues.

    Returns:
      The positions of a row that may be scored, those of a chunk, and whether all logits are kept
      for the backward pass.
    """
    chunk = learner.config.logits_chunk * (packed or 1)
    most = length if packed else min(learner.max_tokens, length)
    # Bytes on a device of the logits at one position of each row.
    each = 4 * learner.decoder.config.vocab_size * rows // learner.row_shards
    return most, min(chunk or chunk_positions(most, each), most), each * most <= LOGITS_BYTES


def chunk_positions(most: int, each: int) -> int:
    """Positions in a chunk: a quarter of them, since chunks that no row fills are skipped.

    Fewer than 256 are not worth it: each chunk adds a gradient of the size of the table.

    Args:
      most: positions of a row that may be scored.
      each: bytes of the logits at one position of each row.
    """
    return max(1, min(max(most // 4, 256), LOGITS_BYTES // each, most))


def batch_loss(
    learner: Learner,
    params: Params,
    reference_params: Params,
    batch: Batch,
    places: Places | None = None,
) -> tuple[Float[Array, ""], dict[str, Metric]]:
    """The weighted sum of the token losses of a microbatch, and its part of the metrics.

    Args:
      places: of packed tokens; None: each row is a dialogue.
    """
    episodes, estimator = batch.episodes, learner.estimator
    hidden = hidden_states(learner.decoder, params, episodes.tokens, places)
    reference = None
    if batch.scores is not None and batch.scores.hidden is not None:
        reference = (reference_params, batch.scores.hidden)
    scores = token_scores(learner, params, hidden, episodes, places, reference)
    kl_loss, kl_estimate = kl_terms(estimator.kl, scores, batch)
    before = batch.logprobs
    if before is None:
        before = jax.lax.stop_gradient(scores.logprobs)
    cap = estimator.importance_cap
    assert cap != "auto", "an estimator is resolved before it is built into a program"
    importance, capped = importance_weights(before, episodes.logprobs, cap)
    token_loss = policy_loss(estimator.clip_range, scores.logprobs, before, batch.advantages)
    loss = jnp.sum(batch.weights * (importance * token_loss + batch.beta * kl_loss))

    turns = episodes.rewards.shape[1]
    drawn = jnp.where(episodes.sampled, episodes.turn, 0)
    owner = jnp.where(episodes.sampled | episodes.trained, episodes.turn, 0)
    tokens = sum_by_turn(jnp.ones(owner.shape), owner, turns).sum(0)
    return loss, {
        "loss": total(loss),
        "kl": total(sum_by_turn(kl_estimate, drawn, turns).sum(0), "nats"),
        "entropy": mean(sum_by_turn(scores.entropy, owner, turns).sum(0), tokens, "nats"),
        "importance_capped": mean(sum_by_turn(capped, drawn, turns).sum(0), tokens),
        **mismatch_parts(episodes.logprobs, before, drawn, turns),
    }


def accumulated_gradient(
    loss: Loss, params: Params, parts: Microbatches
) -> tuple[Params, dict[str, Metric]]:
    """Gradient and metrics of a batch, one microbatch in memory at a time."""
    gradient_of = jax.grad(loss, has_aux=True)

    def add(index: Int[Array, ""], so_far: tuple) -> tuple[Params, dict[str, Metric]]:
        gradient, found = gradient_of(params, *parts.get(index))
        return jax.tree.map(jnp.add, so_far[0], gradient), metrics.merge((so_far[1], found))

    shapes, found = jax.eval_shape(lambda: gradient_of(params, *parts.get(jnp.array(0))))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.fori_loop(0, parts.count, add, (zeros, metrics.empty(found)))


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


def random_move(params: Params, key: Key[Array, ""], share: float) -> Params:
    """Parameters a random step away.

    Args:
      share: length of each tensor's step, of the tensor's own norm (in expectation).

    Source: LPF-SGD, arXiv:2201.08025, with one random step per update and tensors as filters.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(
        leaf + share * jnp.sqrt(jnp.mean(leaf**2)) * jax.random.normal(own, leaf.shape)
        for own, leaf in zip(keys, leaves, strict=True)
    )


def descend(
    learner: Learner, state: TrainState, reference_params: Params, batch: Batch
) -> tuple[TrainState, dict[str, Metric]]:
    """Learns from a batch: each minibatch gives one update.

    Returns:
      The state with new parameters, and the metrics of the loss.
    """
    config = learner.config

    def loss(
        params: Params, part: Batch, places: Places | None
    ) -> tuple[Float[Array, ""], dict[str, Metric]]:
        policy = learner.compose(params, reference_params)
        return batch_loss(learner, policy, reference_params, part, places)

    def one_minibatch(carry: tuple[Params, Any], part: Batch) -> tuple[tuple[Params, Any], dict]:
        params, opt_state = carry
        place = params
        if config.weight_noise:
            key = jax.random.fold_in(jax.random.key(learner.seed), state.step)
            place = random_move(params, key, config.weight_noise)
        cut = split_batch if not config.pack else partial(pack_batch, shards=learner.row_shards)
        parts = cut(part, microbatches=config.microbatches)
        gradient, found = accumulated_gradient(loss, place, parts)
        updates, opt_state = learner.optimizer.update(gradient, opt_state, params)
        found["gradient_norm"] = mean(optax.tree.norm(gradient), jnp.ones(()))
        found["loss"] = mean(found["loss"].total, jnp.ones(()))
        rows = part.episodes.present.sum(0).astype(jnp.float32)
        found["kl"] = mean(found["kl"].total, rows, "nats")
        found["padding"] = padding(part.episodes, parts.positions)
        return (optax.apply_updates(params, updates), opt_state), found

    # A minibatch's loss is a mean over its own rows.
    batch = batch.replace(weights=batch.weights * config.minibatches)
    (params, opt_state), found = jax.lax.scan(
        one_minibatch, (state.params, state.opt_state), split_rows(batch, config.minibatches)
    )
    parts = [jax.tree.map(lambda x, n=n: x[n], found) for n in range(config.minibatches)]
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    return state, metrics.merge(parts)


def imitate(
    learner: Learner, state: TrainState, reference_params: Params, episodes: Episodes
) -> tuple[TrainState, dict[str, Metric]]:
    """Supervised learning: one update on the trained tokens of rows, each with advantage 1.

    Returns:
      The new state, and the loss in nats per token over the whole batch.
    """
    trained = episodes.trained.astype(jnp.float32)
    batch = Batch(
        episodes=episodes,
        advantages=trained,
        weights=trained / jnp.maximum(trained.sum(), 1.0),
        beta=jnp.zeros(trained.shape),
    )
    learner = replace(learner, estimator=EstimatorConfig())  # the likelihood has no variants
    state, found = descend(learner, state, reference_params, batch)
    return state, {name: found[name] for name in ("loss", "gradient_norm", "entropy", "padding")}


def scores_before(learner: Learner) -> bool:
    """Whether an update needs the policy's log-probabilities before its loss finds them."""
    return learner.estimator.kl == "reward" or learner.config.minibatches > 1


def update(
    learner: Learner,
    state: TrainState,
    reference_params: Params,
    episodes: Episodes,
    scores: Scores,
    *,
    plan: DialoguePlan,
    objective: Objective,
    schedule: CoefficientsConfig = coefficients.CONSTANT,
    steps: int = 1,
) -> tuple[TrainState, dict[str, Metric]]:
    """Learns from one rollout: advantages of the whole batch, then each minibatch once.

    Args:
      plan: complete; as the rows were drawn.
      schedule: moves alpha and beta, which `state` carries.
      steps: rollouts of the whole stage, for the schedule.

    Returns:
      The new state, and metrics per turn: kl (nats per turn), entropy (nats per
      token), return, advantage_std, mismatch_metrics between sampler and learner.
    """
    estimator, config, now = learner.estimator, learner.config, state.coefficients
    before, penalty = None, jnp.zeros_like(episodes.rewards)
    if scores_before(learner):
        policy = learner.compose(state.params, reference_params)
        before = score_episodes(learner, policy, episodes).logprobs
    if estimator.kl == "reward":
        assert before is not None, "computed above"
        ratio = sum_by_turn(before - scores.logprobs, episodes.turn, plan.turns)
        penalty = now.beta * ratio
    if episodes.shaping is not None:
        penalty = penalty - episodes.shaping
    groups = group_rows(
        episodes.ids,
        episodes.present,
        running_mean(state.baseline, state.step, config.baseline_decay),
    )
    returns, advantages = turn_advantages(
        objective,
        estimator,
        episodes.rewards,
        groups,
        alpha=now.alpha,
        penalty=penalty,
        roles=plan.roles,
    )
    batch = Batch(
        episodes=episodes,
        advantages=spread_to_tokens(advantages, episodes.turn),
        weights=token_weights(
            estimator.length_norm, episodes, plan, mask_truncated=estimator.mask_truncated
        ),
        beta=spread_to_tokens(jnp.broadcast_to(now.beta, returns.shape), episodes.turn),
        scores=scores,
        logprobs=before,
    )
    state, found = descend(learner, state, reference_params, batch)
    mean_return = turn_means(returns, episodes.present)
    kl = found["kl"].total / jnp.maximum(found["kl"].count, 1.0)
    decay = config.baseline_decay
    state = state.replace(
        baseline=decay * state.baseline + (1 - decay) * mean_return,
        coefficients=coefficients.advance(
            schedule, objective, now, step=state.step, steps=steps, kl=kl, returns=mean_return
        ),
    )
    told = summarise(found, episodes, returns, advantages, groups, plan)
    names = ["loss", "gradient_norm", "kl", "entropy", "padding"]
    names += ["importance_capped"] if estimator.importance_cap is not None else []
    told |= {name: found[name] for name in names}
    return state, told | {"alpha": largest(now.alpha), "beta": largest(now.beta)}


def summarise(
    found: dict[str, Metric],
    episodes: Episodes,
    returns: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    groups: Groups,
    plan: DialoguePlan,
) -> dict[str, Metric]:
    """Metrics of a rollout; of the turns that its rows have."""
    present = episodes.present
    drawn = jnp.where(episodes.sampled, episodes.turn, 0)
    lengths = sum_by_turn(jnp.ones(drawn.shape), drawn, plan.turns)
    tokens, rows = lengths.sum(0), present.sum(0).astype(jnp.float32)

    def share(values: Array) -> Metric:
        return mean(jnp.where(present, values, 0).sum(0), rows)

    right = (episodes.rewards >= 1.0) & present
    answers = jnp.asarray([role == "answer" for role in plan.roles]) & present
    final = plan.turns - 1 - jnp.argmax(answers[:, ::-1], axis=1)
    last = jnp.take_along_axis(right, final[:, None], axis=1)[:, 0]
    first, dialogues = right[:, 0], jnp.maximum(present.any(1).sum(), 1)
    differs = episodes.rewards[:, None, :] != episodes.rewards[None, :, :]  # B B R
    peers = groups.problem[..., None] & present[None]  # rows of the draw that have the turn, B B R
    part = jnp.where(present, 1.0 / jnp.maximum(peers.sum(1), 1), 0.0)  # of its draw, B R
    alone = (groups.problem & present.any(1)[None]).sum(1) == 1

    def share_of_draws(values: Array) -> Metric:
        return mean(jnp.where(values, part, 0).sum(0), part.sum(0))

    spread = jnp.sqrt(turn_means(jnp.square(advantages - turn_means(advantages, present)), present))
    return {
        "delta": mean((last.astype(float) - first).sum(), dialogues),
        "delta_i_to_c": mean((last & ~first).sum(), dialogues),
        "delta_c_to_i": mean((first & ~last).sum(), dialogues),
        "alone": mean((alone & present.any(1)).sum(), dialogues),
        "no_signal": share_of_draws(~(peers & differs).any(1)),  # all rewards are equal
        "all_right": share_of_draws((~peers | right[None]).all(1)),
        "accuracy": share(right),
        "reward": share(episodes.rewards),
        "return": share(returns),
        "advantage_std": largest(spread),
        "length": share(lengths),
        "truncated": share(episodes.truncated),
        **mismatch_metrics(found, tokens, rows),
    }
