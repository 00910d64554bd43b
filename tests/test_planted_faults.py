"""Faults planted between sampler and learner stop a run by the mean of the turn they touch.

On the embedded model and dialogues that it draws, in both types: rounding alone never does.
"""

import dataclasses
from functools import lru_cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stage2
from score_jax.data import sources
from score_jax.model.decoder import Decoder, forward
from score_jax.model.lora import LoraConfig, init_lora, merge
from score_jax.rl import learner
from score_jax.rl.metrics import flat
from score_jax.rl.mismatch import mismatch_metrics, mismatch_parts
from score_jax.rl.scoring import score_tokens
from score_jax.stages.build import StagePrograms, build, load_reference
from score_jax.stages.program import Program
from score_jax.stages.resolve import resolve_stages
from score_jax.stages.train import StageRun, TrainingError
from score_jax.tasks import registry
from tests.stage_configs import train
from tests.tiny_stages import lines

TYPES = ("float32", "bfloat16")


@lru_cache
def drawn(dtype):
    """A stage's programs, the base model, and 256 dialogues of two turns that it drew."""
    config = stage2.get_config()
    config.compute.dtype = dtype
    programs = build(resolve_stages(config, {})[-1].settings)
    settings, params = programs.settings, load_reference(programs)
    problems = sources.load(**dict(settings.data))[:64]
    rollouts = programs.rollout_programs({"": registry.get(settings.task)})
    prompts = programs.to_global(rollouts.encoder.prompts(problems, np.arange(64)))
    key = jax.random.fold_in(jax.random.key(1), 0)
    return programs, params, rollouts.sample(rollouts.prepare(params), prompts, key)[-1]


def scored(decoder, params, episodes, positions=None):
    """The learner's log-probabilities, at other positions if given."""
    positions = jnp.arange(episodes.tokens.shape[1]) if positions is None else positions
    positions = jnp.broadcast_to(positions, episodes.tokens.shape)
    hidden = forward(decoder, params, episodes.tokens, positions)
    return score_tokens(
        decoder, params, hidden, episodes, max_tokens=100, logits_chunk=128
    ).logprobs


def checked(dtype, rescored):
    """Checks a step whose learner has these log-probabilities, as training does."""
    programs, _, episodes = drawn(dtype)
    parts = jax.jit(mismatch_parts, static_argnums=3)(episodes.logprobs, rescored, episodes.turn, 2)
    tokens = jnp.stack([(episodes.turn == turn).sum() for turn in (1, 2)]).astype(jnp.float32)
    rows = jnp.full(2, float(len(episodes.tokens)))
    found = flat(jax.device_get(mismatch_metrics(parts, tokens, rows)))
    values = {"loss": 0.0, "gradient_norm": 0.0} | found
    stage = SimpleNamespace(programs=programs, last_saved=lambda: "nothing is saved")
    stage.mismatch_remedy = partial(StageRun.mismatch_remedy, stage)
    StageRun.check(stage, 3, values)
    return values


def learner_scores(dtype, *, positions=None, change=lambda params: params, **fields):
    """Scores of a learner whose model, parameters or positions are not the sampler's."""
    programs, params, episodes = drawn(dtype)
    decoder = Decoder(dataclasses.replace(programs.decoder.config, **fields))
    score = Program(jax.jit(partial(scored, decoder)), programs.mesh)
    return score(change(params), episodes, positions)


def shifted(dtype):
    """Positions that are one too high from where turn 2 begins."""
    turn = drawn(dtype)[2].turn
    return jnp.arange(turn.shape[1]) + (jnp.cumsum(turn == 2, axis=1) > 0)


def moved_by_adapter(params, dtype):
    """The base with an adapter that the sampler has not heard of."""
    programs, config = drawn(dtype)[0], LoraConfig(rank=4)
    tokens = jnp.zeros((1, 1), jnp.int32)
    boxed = jax.eval_shape(programs.decoder.init, jax.random.key(0), tokens, tokens)["params"]
    fresh = jax.tree.map(lambda x: x.value, init_lora(jax.random.key(2), boxed, config),
                         is_leaf=lambda x: hasattr(x, "value"))  # fmt: skip
    noisy = jax.tree.map(lambda x: x + 0.03 * jax.random.normal(jax.random.key(3), x.shape), fresh)
    return merge(params, noisy, config)


@pytest.mark.parametrize("dtype", TYPES)
def test_rounding_alone_stops_nothing(dtype):
    values = checked(dtype, learner_scores(dtype))
    limit = drawn(dtype)[0].mismatch_limit
    for turn in (1, 2):
        assert values[f"mismatch/mean/turn{turn}"] < limit / 4


def test_in_bfloat16_single_tokens_are_far_beyond_the_limit():
    """Which is why no token's gap may stop a run."""
    values = checked("bfloat16", learner_scores("bfloat16"))
    assert values["mismatch/max/turn1"] > drawn("bfloat16")[0].mismatch_limit


@pytest.mark.parametrize("dtype", TYPES)
def test_one_lying_token_stops_nothing(dtype):
    scores = learner_scores(dtype)
    at = tuple(np.argwhere(np.asarray(drawn(dtype)[2].turn) == 2)[7])
    values = checked(dtype, scores.at[at].add(-40.0))
    assert values["mismatch/max/turn2"] == pytest.approx(40.0, abs=0.5)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_token_that_is_not_finite_stops_the_run(value):
    at = tuple(np.argwhere(np.asarray(drawn("bfloat16")[2].turn) == 2)[7])
    with pytest.raises(TrainingError, match=r"step 3: .* nan nats a token in turn 2"):
        checked("bfloat16", learner_scores("bfloat16").at[at].set(value))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("fault", ["rope", "positions", "window", "adapter"])
def test_a_planted_fault_stops_the_run_by_its_own_turns_mean(fault, dtype):
    layers = drawn(dtype)[0].decoder.config.layers
    base = drawn(dtype)[0].decoder.config.rope_base
    last = tuple(layer == layers - 1 for layer in range(layers))
    plant = {
        "rope": {"rope_base": 10 * base},
        "positions": {"positions": shifted(dtype)},
        "window": {"window": 32, "local_layers": last},  # turn 1 ends before it bites
        "adapter": {"change": lambda params: moved_by_adapter(params, dtype)},
    }
    turn = {"rope": 1, "positions": 2, "window": 2, "adapter": 1}[fault]
    limit = drawn(dtype)[0].mismatch_limit
    message = rf"differ by .* nats a token in turn {turn}, more than config.mismatch_limit {limit};"
    with pytest.raises(TrainingError, match=message):
        checked(dtype, learner_scores(dtype, **plant[fault]))


def test_the_advice_names_a_field_that_exists_and_helps():
    scores = learner_scores("bfloat16").at[:].add(-0.2)
    with pytest.raises(TrainingError, match=r"Use compute.dtype='float32': .* may be raised"):
        checked("bfloat16", scores)
    config = stage2.get_config()
    config.compute.dtype, config.mismatch_limit = "float32", 0.3
    assert build(resolve_stages(config, {})[-1].settings).mismatch_limit == 0.3
    with pytest.raises(TrainingError, match=r"In float32 this is a fault"):
        checked("float32", learner_scores("float32") - 0.2)


def test_a_run_whose_learner_turns_otherwise_stops_at_its_first_step(tmp_path, cache, monkeypatch):
    real = learner.hidden_states

    def turned(decoder, *rest):
        return real(Decoder(dataclasses.replace(decoder.config, rope_base=1e5)), *rest)

    monkeypatch.setattr(learner, "hidden_states", turned)
    with pytest.raises(TrainingError, match=r"step 1: sampler and scorer differ by .* in turn \d"):
        train(tmp_path)


def test_a_run_that_samples_from_a_stale_adapter_stops(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(StagePrograms, "policy", lambda self, trained, reference: reference)
    with pytest.raises(TrainingError, match=r"step [2-6]: sampler and scorer differ by .* in turn"):
        train(tmp_path, lora__rank=2)
    assert lines(tmp_path / "stage1/metrics.jsonl")  # at first it changes nothing


def test_a_run_in_bfloat16_goes_to_its_end(tmp_path, cache):
    train(tmp_path, compute__dtype="bfloat16", evaluation__problems=4)
    rows = lines(tmp_path / "stage1/metrics.jsonl")
    assert len(rows) == 6
    assert all(row["mismatch/limit"] == 0.05 for row in rows)
    assert all(0 <= row[f"importance_capped/turn{turn}"] < 0.05 for row in rows for turn in (1, 2))
