"""Packed rows hold every needed token once, and learn what padded rows learn."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_jax.model.decoder import Decoder
from score_jax.rl import learner, packing
from score_jax.rl.dialogue import DialoguePlan
from score_jax.rl.estimators import EstimatorConfig
from score_jax.rl.learner import LearnerConfig
from score_jax.rl.metrics import flat
from score_jax.rl.objectives import Objective
from tests.guarded import guarded
from tests.tiny import GEMMA, MODEL, grouped, random_params, rows_of

WIDTH, LIMIT = 24, 9
PLAN = DialoguePlan().complete(2, LIMIT)
OBJECTIVE = Objective(reward_weights=(1.0, 1.0), beta=(0.2, 0.1), alpha=2.0)
ROWS = 40  # three to a packed microbatch, and one microbatch that is not full


def dialogues(rows=ROWS, seed=0):
    """Most of them short; among them one of the full width, one of one token, and two of none."""
    rng = np.random.default_rng(seed)
    lines = []
    for row in range(rows):
        first, second = rng.integers(1, LIMIT // 2, 2)
        prompt = rng.integers(1, 4)
        owner = [0] * prompt + [1] * first + [0, 0] + [2] * second + [0] * rng.integers(0, 3)
        if row == 1:
            owner = [0] * 4 + [1] * LIMIT + [0, 0] + [2] * LIMIT
        owner = {2: [0, 2], 3: [0] * 7, 4: [0]}.get(row, owner)
        lines.append((rng.integers(1, 7, len(owner)).tolist(), owner))
    episodes = rows_of(lines, 2, width=WIDTH, ids=grouped(rows, 2))
    logprobs = np.where(episodes.sampled, -np.exp(rng.normal(size=episodes.turn.shape)), 0)
    turns = np.arange(1, 3)
    return episodes.replace(
        logprobs=jnp.asarray(logprobs, jnp.float32),
        present=jnp.asarray((np.asarray(episodes.turn)[:, None] == turns[:, None]).any(2)),
        truncated=jnp.asarray(rng.integers(0, 2, (rows, 2)), bool),
        # Some first attempts were given, some second ones are not learnt.
        sampled=episodes.sampled & ~((episodes.turn == 1) & (np.arange(rows)[:, None] % 5 == 0)),
        trained=episodes.trained & ~((episodes.turn == 2) & (np.arange(rows)[:, None] % 7 == 0)),
    )


def held(episodes):
    """Tokens of each row up to the last scored one, by a loop."""
    scored = np.asarray(episodes.sampled | episodes.trained)
    return [max((t + 1 for t in range(WIDTH) if row[t]), default=0) for row in scored]


@lru_cache
def programs(model, config, estimator, row_shards):
    options = learner.Learner(
        decoder=Decoder(model),
        # After a long step rounding would be amplified by the next one.
        optimizer=optax.sgd(1.0 if config.minibatches == 1 else 0.01),
        max_tokens=PLAN.drawn_tokens,
        config=config,
        estimator=estimator,
        row_shards=row_shards,
    )

    @jax.jit
    def go(params, reference, rows):
        keep = estimator.kl == "exact"
        scores = learner.score_episodes(options, reference, rows, keep_hidden=keep)
        state = learner.begin(options, params, OBJECTIVE)
        new, found = learner.update(
            options, state, reference, rows, scores, plan=PLAN, objective=OBJECTIVE
        )
        supervised = learner.imitate(options, state, reference, rows)
        logprobs = learner.score_episodes(options, reference, rows).logprobs
        return new, found, scores, logprobs, supervised

    return guarded(go)


def learnt(rows, *, model=MODEL, row_shards=1, estimator=None, **fields):
    """An update's state, metrics and scores; and those of supervised learning."""
    estimator = estimator or EstimatorConfig()
    go = programs(model, LearnerConfig(logits_chunk=5, **fields), estimator, row_shards)
    new, found, scores, logprobs, (state, told) = jax.device_get(
        go(random_params(model), random_params(model, seed=1), rows)
    )
    return new.params, flat(found), scores, logprobs, state.params, flat(told)


CASES = {
    "exact": {},
    "gemma": {"model": GEMMA},
    "rows of one microbatch": {"microbatches": 20},
    "shards": {"row_shards": 4},
    "k2": {"estimator": EstimatorConfig(kl="k2", importance_cap=2.0, length_norm="sequence")},
    "reward": {"estimator": EstimatorConfig(kl="reward"), "microbatches": 2},
    "nothing of what was cut": {"estimator": EstimatorConfig(mask_truncated=True)},
    "minibatches": {
        "estimator": EstimatorConfig(kl="k3", clip=0.2),
        "minibatches": 2,
        "microbatches": 2,
        "row_shards": 2,
    },
}


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES.keys())
def test_packed_rows_learn_what_padded_rows_learn(fields):
    """Parameters, every metric, and every score; of the kept hidden states, those that are read."""
    rows = dialogues()
    (params, metrics, scores, logprobs, taught, told), padded = (
        learnt(rows, pack=pack, **fields) for pack in (True, False)
    )
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
    jax.tree.map(close, (params, taught), (padded[0], padded[4]))
    assert metrics.pop("padding") < padded[1].pop("padding")
    assert told.pop("padding") < padded[5].pop("padding")
    for found, other in ((metrics, padded[1]), (told, padded[5])):
        assert found.keys() == other.keys()
        for name, value in found.items():
            close(value, other[name], err_msg=name)
    close(logprobs, padded[3])
    close(scores.logprobs, padded[2].logprobs)
    assert (scores.hidden is None) == (padded[2].hidden is None)
    if scores.hidden is not None:
        read = np.arange(WIDTH) < np.asarray(held(rows))[:, None]
        close(scores.hidden[read], padded[2].hidden[read])


def test_the_share_of_padding_by_hand():
    """40 rows of 24; packed ones go three at a time."""
    rows = dialogues()
    tokens = sum(held(rows))
    assert learnt(rows, pack=False)[1]["padding"] == pytest.approx(1 - tokens / (ROWS * WIDTH))
    packed = learnt(rows)[1]["padding"]
    positions = tokens / (1 - packed)
    assert positions / (3 * WIDTH) == pytest.approx(round(positions / (3 * WIDTH)), abs=1e-3)
    assert positions < 0.7 * ROWS * WIDTH


def test_full_rows_cost_what_they_did():
    """Nothing can be put beside them: as many positions as without packing."""
    line = ([3] * WIDTH, [0] * 4 + [1] * LIMIT + [0, 0] + [2] * LIMIT)
    rows = rows_of([line] * 32, 2, ids=grouped(32, 2))
    made = packing.pack(rows, shards=2, microbatches=1)
    assert int(made.microbatches) == 16 and made.rows == 1
    assert int(made.positions) == 32 * WIDTH


def naive_first_fit(lengths, width):
    """The packed rows, each a list of (dialogue, first position)."""
    rows = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        room = [width - sum(lengths[other] for other, _ in held) for held in rows]
        fits = [number for number, free in enumerate(room) if free >= lengths[row]]
        if not fits:
            rows.append([])
            fits, room = [len(rows) - 1], [*room, width]
        rows[fits[0]].append((row, width - room[fits[0]]))
    return rows


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("microbatches", [1, 24])
def test_every_needed_token_stands_in_one_place(seed, microbatches):
    """Against a plain first fit, token by token."""
    rows = dialogues(48, seed)
    lengths = np.asarray(held(rows)).reshape(2, 24)
    made = packing.pack(rows, shards=2, microbatches=microbatches)
    assert made.rows == {1: 2, 24: 1}[microbatches]
    want = [naive_first_fit(list(shard), WIDTH) for shard in lengths]
    want = [
        [[e for e in row if shard[e[0]]] for row in rows]
        for rows, shard in zip(want, lengths, strict=True)
    ]
    filled = max(sum(bool(row) for row in shard) for shard in want)
    assert int(made.microbatches) == -(-filled // made.rows)
    for index in range(int(made.microbatches)):
        places = jax.tree.map(np.asarray, packing.places_of(made, jnp.asarray(index)))
        for shard in range(2):
            for line in range(made.rows):
                number = index * made.rows + line
                expected = {
                    start + t: (row, t)
                    for row, start in (want[shard][number] if number < len(want[shard]) else [])
                    for t in range(lengths[shard][row])
                }
                own = np.flatnonzero(places.own[shard, line])
                row, position = places.row[shard, line], places.position[shard, line]
                assert {int(t): (int(row[t]), int(position[t])) for t in own} == expected


def test_what_is_gathered_is_spread_back():
    rows = dialogues()
    values = jnp.arange(ROWS * WIDTH * 2.0).reshape(ROWS, WIDTH, 2)
    made = packing.pack(rows, shards=4, microbatches=1)
    found = jnp.zeros_like(values)
    for index in range(int(made.microbatches)):
        places = packing.places_of(made, jnp.asarray(index))
        part = packing.gather(places, values)
        assert not np.asarray(part)[~np.asarray(places.own).reshape(4, -1)].any()
        found = packing.spread(places, found, part)
    read = (np.arange(WIDTH) < np.asarray(held(rows))[:, None])[..., None]
    np.testing.assert_array_equal(found, np.where(read, values, 0))
