"""The sampling loop against a Python loop that knows no cache, no batch and no padding."""

import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.model.decoder import Decoder, write_cache
from score_jax.rl import sampling as sampling_module
from score_jax.rl.sampling import SamplingConfig, TurnTemplate, sample_dialogues
from score_jax.types import Cache, Prompts
from tests.guarded import guarded
from tests.tiny import (
    GEMMA,
    MODEL,
    PROMPTS,
    SAMPLING,
    TEMPLATE,
    naive_dialogues,
    naive_logprobs,
    random_params,
)

KEY = jax.random.key(20)  # its rows differ in every way; see the cases below


@lru_cache
def program(config, template, sampling):
    draw = partial(sample_dialogues, Decoder(config), template=template, config=sampling)
    return guarded(jax.jit(draw))


def sample(config=MODEL, template=TEMPLATE, sampling=SAMPLING, prompts=PROMPTS, key=KEY):
    episodes = program(config, template, sampling)(random_params(config), prompts, key)
    return jax.tree.map(np.asarray, episodes)


def rows(episodes):
    """(tokens, turn, truncated) of each row, without padding."""
    return [
        (tokens[:length].tolist(), turn[:length].tolist(), cut.tolist())
        for tokens, turn, length, cut in zip(
            episodes.tokens, episodes.turn, episodes.length, episodes.truncated, strict=True
        )
    ]


def with_(**fields):
    return dataclasses.replace(SAMPLING, **fields)


TREE = with_(group_size=4, second_attempts=2, temperature=0.7)
TREE_TEMPLATE = TurnTemplate(stops=(0,), instruction=(), turns=3)
SEVERAL = dataclasses.replace(TEMPLATE, stops=(4, 0, 8))
BRISK = with_(turn_limit=2, group_size=6)
CASES = {
    "two turns": (MODEL, TEMPLATE, SAMPLING),
    "several stops, one of them in the instruction": (MODEL, SEVERAL, BRISK),
    "windows, caps and norms": (GEMMA, TEMPLATE, SAMPLING),
    "long turns, the cache in four segments": (
        MODEL,
        TEMPLATE,
        with_(turn_limit=24, decode_segments=4),
    ),
    "one greedy turn": (MODEL, dataclasses.replace(TEMPLATE, turns=1), with_(temperature=0.0)),
    "three turns in branches, cool, no instruction": (
        MODEL,
        TREE_TEMPLATE,
        TREE,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_dialogues_are_those_of_a_plain_loop_without_cache(case):
    config, template, sampling = CASES[case]
    got = sample(config, template, sampling)
    want = naive_dialogues(config, random_params(config), PROMPTS, KEY, template, sampling)
    assert rows(got) == want
    assert got.draw.tolist() == np.repeat([5, 9], sampling.group_size).tolist()
    assert not got.rewards.any()
    assert not got.turn[np.arange(got.turn.shape[1]) >= got.length[:, None]].any()


def test_the_cases_hold_what_they_are_to_show():
    """Rows that stop and rows that are cut, in both turns, moving at different paces."""
    got = sample()
    assert got.truncated.any(0).all() and not got.truncated.all(0).any()
    starts = {
        int(np.flatnonzero(turn == 2)[0]) - int(p)
        for turn, p in zip(got.turn, np.repeat(PROMPTS.length, 3), strict=True)
    }
    assert len(starts) > 2


@pytest.mark.parametrize("config", [MODEL, GEMMA], ids=["plain", "gemma"])
def test_logprobs_are_the_policys_at_temperature_one(config):
    got = sample(config)
    want = np.where(got.turn > 0, naive_logprobs(config, random_params(config), got.tokens), 0.0)
    np.testing.assert_allclose(got.logprobs, want, atol=1e-5)


def test_logprobs_do_not_follow_the_temperature():
    cool = sample(MODEL, TREE_TEMPLATE, TREE)
    want = np.where(cool.turn > 0, naive_logprobs(MODEL, random_params(MODEL), cool.tokens), 0.0)
    np.testing.assert_allclose(cool.logprobs, want, atol=1e-5)


def test_a_turn_owns_its_stop_and_a_cut_turn_has_a_forced_one():
    got = sample()
    for tokens, turn, cut, length in zip(
        got.tokens, got.turn, got.truncated, got.length, strict=True
    ):
        for number in (1, 2):
            own = np.flatnonzero(turn == number)
            assert len(own) <= SAMPLING.turn_limit
            assert (np.diff(own) == 1).all()
            assert (tokens[own] == TEMPLATE.stops[0]).sum() == (0 if cut[number - 1] else 1)
            assert cut[number - 1] or tokens[own[-1]] == TEMPLATE.stops[0]
            if number == 1:
                between = [*TEMPLATE.stops] * int(cut[0]) + [7, 8]
                assert tokens[own[-1] + 1 : own[-1] + 1 + len(between)].tolist() == between
            else:
                assert length == own[-1] + 1


def test_any_stop_ends_a_turn_and_a_cut_one_gets_the_formats_own():
    got = sample(template=SEVERAL, sampling=BRISK)
    ends = set()
    for tokens, owner, cut in rows(got):
        for number in (1, 2):
            own = [t for t, o in zip(tokens, owner, strict=True) if o == number]
            assert not set(own[:-1]) & set(SEVERAL.stops)
            assert cut[number - 1] == (own[-1] not in SEVERAL.stops)
            ends |= {own[-1]} - ({own[-1]} if cut[number - 1] else set())
        behind = owner.index(0, owner.index(1))
        assert tokens[behind : behind + 2 + cut[0]] == [4] * cut[0] + [7, 8]
    assert len(ends) > 2, "the case shows too few of the stops"
    assert got.truncated[:, 0].any() and not got.truncated[:, 0].all()


OTHERS = {
    "in another order": (jax.tree.map(lambda x: x[::-1], PROMPTS), SAMPLING),
    "alone, padded further, among more samples": (
        Prompts(
            tokens=np.array([[6, 2, 1, 3, 8, 8, 8, 8]], np.int32),
            length=PROMPTS.length[1:],
            draw=PROMPTS.draw[1:],
        ),
        with_(prompt_limit=8, group_size=5),
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_row_does_not_depend_on_its_batch(case):
    prompts, sampling = OTHERS[case]
    base, other = sample(), sample(prompts=prompts, sampling=sampling)
    known = rows(base)
    there = rows(other)
    for ordinal in prompts.draw:
        mine = np.flatnonzero(base.draw == ordinal)
        theirs = np.flatnonzero(other.draw == ordinal)
        for a, b in zip(mine, theirs, strict=False):
            assert there[b] == known[a]
            size = base.length[a]
            np.testing.assert_allclose(other.logprobs[b, :size], base.logprobs[a, :size], atol=1e-5)


def test_a_full_row_ends_where_it_is_with_what_is_missing_flagged():
    """It is the unlimited row cut off; turns that did not get to their end are truncated."""
    size, want = 12, []
    for tokens, owner, cut in rows(sample()):
        whole = [owner.count(turn) for turn in (1, 2)]
        inside = [owner[:size].count(turn) for turn in (1, 2)]
        lost = [a or b > c for a, b, c in zip(cut, whole, inside, strict=True)]
        want.append((tokens[:size], owner[:size], lost))
    got = sample(sampling=with_(row_limit=size))
    assert rows(got) == want
    assert got.tokens.shape[1] == size
    assert [2 in owner for _, owner, _ in want].count(False) and got.length.min() < size


def test_padding_of_the_prompt_is_never_read():
    """Whatever stands behind the prompt, the stop token included."""
    noisy = PROMPTS.tokens.copy()
    noisy[np.arange(5) >= PROMPTS.length[:, None]] = 7
    assert rows(sample(prompts=PROMPTS.replace(tokens=noisy))) == rows(sample())


def test_samples_steps_and_problems_differ():
    got = sample()
    texts = [tuple(row[0]) for row in rows(got)]
    assert len(set(texts)) == len(texts)
    later = sample(key=jax.random.key(8))
    assert rows(later) != rows(got)
    same_prompt = PROMPTS.replace(tokens=PROMPTS.tokens[[0, 0]], length=PROMPTS.length[[0, 0]])
    twice = [tuple(row[0]) for row in rows(sample(prompts=same_prompt))]
    assert twice[:3] != twice[3:]  # the same text as problem 5 and as problem 9


def test_branches_share_the_first_attempt_and_part_at_the_second():
    got = sample(MODEL, TREE_TEMPLATE, TREE)
    lines = [(np.array(t), np.array(o)) for t, o, _ in rows(got)]
    firsts = [tuple(tokens[owner == 1]) for tokens, owner in lines]
    assert firsts[0::2] == firsts[1::2]
    assert len(set(firsts[0:4])) == 2 and len(set(firsts[4:8])) == 2
    seconds = [tuple(tokens[owner == 2]) for tokens, owner in lines]
    assert seconds[0::2] != seconds[1::2]


def test_the_loop_ends_with_the_longest_row():
    steps = []

    class Counting(Decoder):
        def __call__(self, tokens, positions, cache=None):
            if cache is not None:
                jax.debug.callback(lambda: steps.append(1))
            return super().__call__(tokens, positions, cache)

    draw = jax.jit(
        partial(sample_dialogues, Counting(MODEL), template=TEMPLATE, config=with_(group_size=1))
    )
    got = jax.block_until_ready(draw(random_params(MODEL), PROMPTS, jax.random.key(18)))
    jax.effects_barrier()
    drawn = np.asarray(got.length) - PROMPTS.length
    assert len(steps) == drawn.max()
    assert drawn.max() < TEMPLATE.row_length(SAMPLING) - 6  # it could have gone on


@pytest.mark.parametrize(
    ("config", "tolerance"),
    [(GEMMA, 1e-5), (dataclasses.replace(GEMMA, dtype="bfloat16"), 0.06)],
    ids=["float32", "bfloat16"],
)
def test_cached_decoding_is_the_full_forward(config, tolerance):
    """A block of the prompt, then one token at a time, each row at its own length."""
    decoder, params = Decoder(config), random_params(config)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 9)
    everywhere = jnp.broadcast_to(jnp.arange(12), (2, 12))
    apply = jax.jit(decoder.apply)
    full, _ = apply({"params": params}, tokens, everywhere)
    begun = jnp.array([3, 5])
    _, new = apply({"params": params}, tokens[:, :5], everywhere[:, :5])
    slots = [(0, 0), (0, 0), (0, 0), (0, 7), (0, 0)]
    # What lies in slots that are not yet written must not matter.
    cache = Cache(
        keys=jnp.pad(new.keys, slots, constant_values=9.0),
        values=jnp.pad(new.values, slots, constant_values=9.0),
    )

    @jax.jit
    def one(cache, at):
        token = jnp.take_along_axis(tokens, at[:, None], axis=1)
        hidden, new = decoder.apply({"params": params}, token, at[:, None], cache)
        return hidden[:, 0], write_cache(cache, new, at)

    for step in range(7):
        at = begun + step
        hidden, cache = one(cache, at)
        want = full[jnp.arange(2), at].astype(jnp.float32)
        scale = jnp.abs(want).max()
        np.testing.assert_allclose(hidden / scale, want / scale, atol=tolerance)


def test_row_length_holds_the_longest_dialogue():
    template = TurnTemplate(stops=(0,), instruction=(1, 2, 3), turns=3)
    config = SamplingConfig(prompt_limit=10, turn_limit=20)
    assert template.row_length(config) == 10 + 20 + (1 + 3) + 20 + (1 + 3) + 20


def test_each_span_sees_all_that_may_be_written_in_it():
    """Prompts of 10, then 2 * 20 + 4 = 44 tokens at most, in thirds; slots in tiles of 16."""
    template = TurnTemplate(stops=(0,), instruction=(1, 2, 3), turns=2)
    config = SamplingConfig(prompt_limit=10, turn_limit=20, decode_segments=3)
    assert template.segment_schedule(config) == [(14, 32), (29, 48), (44, 54)]
    whole = dataclasses.replace(config, decode_segments=1)
    assert template.segment_schedule(whole) == [(44, 54)]
    assert template.segment_schedule(dataclasses.replace(whole, row_limit=30)) == [
        (29, 30)
    ]  # prompts of 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_size": 0}, r"sampling.group_size is 0; set at least 1"),
        ({"turn_limit": -2}, r"sampling.turn_limit is -2; set at least 1"),
        (
            {"group_size": 4, "second_attempts": 3},
            r"sampling.group_size is 4; set a multiple .*second_attempts 3",
        ),
        ({"temperature": -0.5}, r"sampling.temperature is -0.5; set a finite value >= 0"),
    ],
)
def test_impossible_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**fields)


def pictured(name):
    """The rows of the module's picture of forced tokens: one list of words for each row."""
    lines = sampling_module.__doc__.splitlines()
    first = next(n for n, line in enumerate(lines) if line.split()[:1] == ["iteration"])
    found = [line.split() for line in lines[first + 1 : first + 7]]
    return [words[words.index(name) + 1 :] for words in found if name in words]


def test_the_picture_of_forced_tokens_shows_what_advance_does():
    """Drawn tokens are taken from the picture; what is forced and whose it is must follow."""
    ids = {"#": 0, "i": 7, "j": 8, "y": 3, ".": 3}
    template = TurnTemplate(stops=(0,), instruction=(7, 8), turns=2)
    forced_tokens = [0, 7, 8, 0]
    state = sampling_module.SamplingState(
        tokens=jnp.zeros((2, 8), jnp.int32),
        turn_ids=jnp.zeros((2, 8), jnp.int32),
        logprobs=jnp.zeros((2, 8)),
        truncated=jnp.zeros((2, 2), bool),
        length=jnp.zeros(2, jnp.int32),
        turn=jnp.ones(2, jnp.int32),
        used=jnp.zeros(2, jnp.int32),
        forced=jnp.full(2, 3),
        done=jnp.zeros(2, bool),
        hidden=jnp.zeros((2, 1)),
        cache=None,
    )
    tokens, forced = pictured("token"), pictured("forced")
    for step in range(8):
        assert state.forced.tolist() == [int(row[step]) for row in forced], f"iteration {step}"
        drawn = [ids[row[step]] for row in tokens]
        token = [
            forced_tokens[at] if at < 3 else own
            for at, own in zip(state.forced.tolist(), drawn, strict=True)
        ]
        state = sampling_module.advance(
            state, jnp.asarray(token), jnp.full(2, -1.0), template, limit=3
        )
    assert state.tokens.tolist() == [[ids[x] if x != "." else 0 for x in row] for row in tokens]
    assert state.turn_ids.tolist() == [[int(x) for x in row] for row in pictured("turn")]
    assert state.done.all() and state.truncated.tolist() == [[False, False], [True, False]]
