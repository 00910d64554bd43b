"""The sampling loop against a Python loop that knows no cache, no batch and no padding."""

import dataclasses
import re
from functools import lru_cache, partial

import jax
import numpy as np
import pytest

from score_jax.model.decoder import Decoder, split_layers
from score_jax.records import Problem, Task
from score_jax.rl.dialogue import DialoguePlan, Encoder, row_ids
from score_jax.rl.sampling import sample_dialogues
from score_jax.rl.sampling_plan import (
    SamplingConfig,
    forced_blocks,
    loop_sizes,
    loop_trips,
    segment_slots,
)
from tests.guarded import guarded
from tests.pin_step import DigitChat
from tests.tiny import (
    GEMMA,
    MODEL,
    PLAN,
    PROMPTS,
    SAMPLING,
    STOPS,
    naive_dialogues,
    naive_logprobs,
    prompts_of,
    random_params,
    row_logits,
)

KEY = jax.random.key(20)  # its rows differ in every way; see the cases below
ROUNDING = 1e-4  # nats; the most by which float32 programs of other shapes may differ in a logit
LINES, DRAWS = [[3, 4, 5], [6, 2, 1, 3]], [5, 9]


@lru_cache
def program(config, plan, sampling, stops):
    draw = partial(sample_dialogues, Decoder(config), plan=plan, stops=stops, config=sampling)
    return guarded(jax.jit(draw))


def sample(prompts=PROMPTS, plan=PLAN, sampling=SAMPLING, *, config=MODEL, stops=STOPS, key=KEY):
    episodes = program(config, plan, sampling, stops)(random_params(config), prompts, key)
    return jax.tree.map(np.asarray, episodes)


def naive(prompts=PROMPTS, plan=PLAN, sampling=SAMPLING, *, config=MODEL, stops=STOPS, key=KEY):
    return naive_dialogues(config, random_params(config), prompts, key, plan, sampling, stops)


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


def turns(count, limit=SAMPLING.turn_limit, **fields):
    """A plan of so many turns."""
    return DialoguePlan(**fields).complete(count, limit)


def asked(plan, **options):
    """The two prompts of all these tests, as rows of another plan."""
    return prompts_of(LINES, plan=plan, draws=DRAWS, **options)


TREE = with_(group_size=4, second_attempts=2, temperature=0.7)
ONE, THREE, SHORT = turns(1), turns(3), turns(2, 2)
BARE = asked(THREE, instructions=[[()] * 3] * 2)
SEVERAL, FORMATS_OWN = (4, 0, 8), asked(SHORT, stop=4)
UNEQUAL = turns(3, limits=(2, 5, 3))
CASES = {
    "two turns": {},
    "several stops, one of them in the instruction": {
        "prompts": FORMATS_OWN,
        "plan": SHORT,
        "sampling": with_(group_size=6),
        "stops": SEVERAL,
    },
    "windows, caps and norms": {"config": GEMMA},
    "long turns, the cache in four segments": {
        "plan": turns(2, 24),
        "sampling": with_(decode_segments=4),
    },
    "one greedy turn": {
        "prompts": asked(ONE),
        "plan": ONE,
        "sampling": with_(temperature=0.0),
    },
    "three turns in branches, cool, no instruction": {
        "prompts": BARE,
        "plan": THREE,
        "sampling": TREE,
    },
    "limits of their own, instructions of none to three tokens": {
        "prompts": asked(UNEQUAL, instructions=[[(), (7,), ()], [(), (7, 8, 6), (1, 2)]]),
        "plan": UNEQUAL,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_dialogues_are_those_of_a_plain_loop_without_cache(case):
    got = sample(**CASES[case])
    assert rows(got) == naive(**CASES[case])
    group_size = CASES[case].get("sampling", SAMPLING).group_size
    assert got.ids.draw.tolist() == np.repeat([5, 9], group_size).tolist()
    assert got.ids.sample.tolist() == [*range(group_size)] * 2
    assert not got.rewards.any() and got.present.all()
    assert not got.turn[np.arange(got.turn.shape[1]) >= got.length[:, None]].any()
    assert (got.sampled == (got.turn > 0)).all() and (got.trained == got.sampled).all()


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
    got = sample(config=config)
    want = np.where(got.sampled, naive_logprobs(config, random_params(config), got.tokens), 0.0)
    np.testing.assert_allclose(got.logprobs, want, atol=1e-5)


def test_logprobs_do_not_follow_the_temperature():
    cool = sample(BARE, THREE, TREE)
    want = np.where(cool.sampled, naive_logprobs(MODEL, random_params(MODEL), cool.tokens), 0.0)
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
            assert (tokens[own] == STOPS[0]).sum() == (0 if cut[number - 1] else 1)
            assert cut[number - 1] or tokens[own[-1]] == STOPS[0]
            if number == 1:
                between = [*STOPS] * int(cut[0]) + [7, 8]
                assert tokens[own[-1] + 1 : own[-1] + 1 + len(between)].tolist() == between
            else:
                assert length == own[-1] + 1


def test_any_stop_ends_a_turn_and_a_cut_one_gets_the_formats_own():
    got = sample(**CASES["several stops, one of them in the instruction"])
    ends = set()
    for tokens, owner, cut in rows(got):
        for number in (1, 2):
            own = [t for t, o in zip(tokens, owner, strict=True) if o == number]
            assert not set(own[:-1]) & set(SEVERAL)
            assert cut[number - 1] == (own[-1] not in SEVERAL)
            ends |= {own[-1]} - ({own[-1]} if cut[number - 1] else set())
        behind = owner.index(0, owner.index(1))
        assert tokens[behind : behind + 2 + cut[0]] == [4] * cut[0] + [7, 8]
    assert len(ends) > 2, "the case shows too few of the stops"
    assert got.truncated[:, 0].any() and not got.truncated[:, 0].all()


def singly(pairs, **options):
    """One prompt for each (draw, sample): the row on its own, whatever its neighbours are."""
    draws, samples = zip(*pairs, strict=True)
    lines = [LINES[DRAWS.index(draw)] for draw in draws]
    ids = row_ids(np.array(draws), np.array(draws), np.array(samples))
    return prompts_of(lines, ids=ids, **options)


STRANGERS = prompts_of(
    [[1], LINES[1], [5, 5, 5, 5, 5], LINES[0], [2, 8]],
    draws=[9000, 9, 1, 5, 2],
    instructions=[[(), (1, 2, 3, 4)], [(), (7, 8)], [(), ()], [(), (7, 8)], [(), (6,)]],
)
OTHERS = {
    "in another order": (jax.tree.map(lambda x: x[::-1], PROMPTS), SAMPLING),
    "alone": (singly([(9, 2)]), with_(group_size=1)),
    "in two parts of its group": (singly([(5, 1), (9, 1), (9, 3)]), with_(group_size=2)),
    "among strangers and more samples, over a cache in segments": (
        STRANGERS,
        with_(group_size=4, decode_segments=3),
    ),
}


def margin(episodes, row, at, *, key=KEY, config=MODEL):
    """Nats by which the token at one place was preferred to the next best, noise included.

    Drawing takes the largest of logits plus noise, so programs that round otherwise may draw
    another token only where this is as small as their rounding.
    """
    ids = jax.tree.map(lambda x: int(x[row]), episodes.ids)
    turn = episodes.turn[row, at]
    sample = ids.attempt if turn == 1 else ids.sample
    for number in (ids.draw, sample, turn, at):
        key = jax.random.fold_in(key, number)
    logits = row_logits(config)(random_params(config), episodes.tokens[row : row + 1])[0, at - 1]
    second, first = np.sort(np.asarray(logits + jax.random.gumbel(key, logits.shape)))[-2:]
    return first - second


def assert_same_row(mine, a, theirs, b):
    """The same tokens; from a place on, others where only rounding had to decide it."""
    size = min(mine.length[a], theirs.length[b])
    same = mine.tokens[a, :size] == theirs.tokens[b, :size]
    until = size if same.all() else int(np.argmin(same))
    if not same.all() or mine.length[a] != theirs.length[b]:
        found = margin(mine, a, until) if until < size else np.inf
        assert found < ROUNDING, f"rows part at {until}, where the draw was clear by {found} nats"
    for name in ("turn", "sampled", "trained"):
        np.testing.assert_array_equal(
            getattr(theirs, name)[b, :until], getattr(mine, name)[a, :until]
        )
    np.testing.assert_allclose(
        theirs.logprobs[b, :until], mine.logprobs[a, :until], atol=ROUNDING / 10
    )
    if until == size:
        np.testing.assert_array_equal(theirs.truncated[b], mine.truncated[a])


def numbered(episodes):
    """Rows by (draw, sample)."""
    pairs = zip(episodes.ids.draw.tolist(), episodes.ids.sample.tolist(), strict=True)
    return {pair: row for row, pair in enumerate(pairs)}


@pytest.mark.parametrize("case", OTHERS)
def test_a_row_does_not_depend_on_its_batch(case):
    prompts, sampling = OTHERS[case]
    mine, theirs = sample(), sample(prompts, sampling=sampling)
    places, others = numbered(mine), numbered(theirs)
    shared = places.keys() & others.keys()
    assert len(shared) == {"alone": 1, "in two parts of its group": 4}.get(case, 6)
    for pair in shared:
        assert_same_row(mine, places[pair], theirs, others[pair])


def test_branches_do_not_depend_on_how_their_group_is_drawn():
    """Sample 3 alone takes its first attempt from sample 2's keys, as it does among all four."""
    whole = sample(BARE, THREE, TREE)
    pairs = [(9, 3), (5, 2), (5, 1), (9, 0)]
    bare = singly(pairs, plan=THREE, instructions=[[()] * 3] * 4)
    alone = sample(bare, THREE, dataclasses.replace(TREE, group_size=1))
    assert alone.ids.attempt.tolist() == [2, 2, 0, 0]
    for row, pair in enumerate(pairs):
        place = numbered(whole)[pair]
        size = whole.length[place]
        assert size == alone.length[row]
        assert whole.tokens[place, :size].tolist() == alone.tokens[row, :size].tolist()


def test_a_draw_that_was_clear_may_not_change():
    """The margin is measured where a token was drawn, and a wrong one there is refused."""
    mine = sample()
    for row, (tokens, owner, _) in enumerate(rows(mine)):
        for at in np.flatnonzero(owner):
            gap = margin(mine, row, at)
            assert gap > 0
            if gap > 10 * ROUNDING:
                wrong = mine.tokens.copy()
                wrong[row, at] = (tokens[at] + 1) % MODEL.vocab_size
                with pytest.raises(AssertionError, match=f"part at {at}, where the draw was clear"):
                    assert_same_row(mine, row, mine.replace(tokens=wrong), row)


@pytest.mark.parametrize("size", [6, 8, 12])
def test_a_full_row_ends_where_it_is_with_what_is_missing_flagged(size):
    """It is the unlimited row cut off; turns that did not get to their end are truncated."""
    want = []
    for tokens, owner, cut in rows(sample()):
        whole = [owner.count(turn) for turn in (1, 2)]
        inside = [owner[:size].count(turn) for turn in (1, 2)]
        lost = [a or b > c for a, b, c in zip(cut, whole, inside, strict=True)]
        want.append((tokens[:size], owner[:size], lost))
    got = sample(sampling=with_(row_limit=size))
    assert rows(got) == want
    assert got.tokens.shape[1] == size
    ends = {owner[-1] for _, owner, _ in want}  # in what is forced, in turn 1, in turn 2
    assert ends == {6: {0, 1}, 8: {0, 1, 2}, 12: {0, 2}}[size], ends
    assert size < 12 or got.length.min() < size


def test_padding_of_the_prompt_is_never_read():
    """Whatever stands behind the prompt, the stop token included."""
    noisy = np.pad(PROMPTS.tokens, ((0, 0), (0, 2)))
    noisy[np.arange(6) >= PROMPTS.length[:, None]] = 7
    wide = PROMPTS.replace(tokens=noisy, turn=np.zeros((2, 6), np.int32))
    assert rows(sample(wide)) == rows(sample())


def test_samples_steps_and_problems_differ():
    got = sample()
    texts = [tuple(row[0]) for row in rows(got)]
    assert len(set(texts)) == len(texts)
    later = sample(key=jax.random.key(8))
    assert rows(later) != rows(got)
    same_prompt = prompts_of([LINES[0]] * 2, draws=DRAWS)
    twice = [tuple(row[0]) for row in rows(sample(same_prompt))]
    assert twice[:3] != twice[3:]  # the same text as problem 5 and as problem 9


def test_branches_share_the_first_attempt_and_part_at_the_second():
    got = sample(BARE, THREE, TREE)
    assert got.ids.attempt.tolist() == [0, 0, 2, 2] * 2
    lines = [(np.array(t), np.array(o)) for t, o, _ in rows(got)]
    firsts = [tuple(tokens[owner == 1]) for tokens, owner in lines]
    assert firsts[0::2] == firsts[1::2]
    assert len(set(firsts[0:4])) == 2 and len(set(firsts[4:8])) == 2
    seconds = [tuple(tokens[owner == 2]) for tokens, owner in lines]
    assert seconds[0::2] != seconds[1::2]


def test_rows_that_have_ended_cost_nothing():
    """The positions computed, by hand: of all rows while more than half draw, then of half."""
    prompts = prompts_of([[3, 4, 5]], draws=[5])
    one, sampling = turns(1, 40), with_(group_size=8, row_sizes=2)
    got = sample(prompts, one, sampling)
    drawn = np.sort(got.length - 3)
    middle, longest = drawn[3], drawn[7]
    assert middle < longest < 40
    assert got.effort.computed.sum() == 8 * middle + 4 * (longest - middle)
    plain = sample(prompts, one, with_(group_size=8, row_sizes=1))
    assert plain.effort.computed.tolist() == [longest] * 8
    assert rows(plain) == rows(got)


GIVEN = turns(2, sources=("given", "sampled"))
ATTEMPTS = prompts_of(  # one attempt that stopped at once, one of three tokens
    [[3, 4, 5, 0, 7, 8], [6, 2, 1, 3, 2, 5, 0, 7, 8]],
    plan=GIVEN,
    draws=DRAWS,
    owners=[[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 0, 0]],
)


def test_a_given_first_turn_is_its_own_turn_and_not_the_policys():
    got = sample(ATTEMPTS, GIVEN)
    assert rows(got) == naive(ATTEMPTS, GIVEN)
    for row, (line, owner, cut) in enumerate(rows(got)):
        begun = ATTEMPTS.length[row // 3]
        assert line[:begun] == ATTEMPTS.tokens[row // 3, :begun].tolist()
        assert owner[:begun] == ATTEMPTS.turn[row // 3, :begun].tolist()
        assert set(owner[begun:]) == {2} and not cut[0]
    assert (got.sampled == (got.turn == 2)).all() and (got.trained == (got.turn == 2)).all()
    assert not got.logprobs[got.turn != 2].any() and got.logprobs[got.turn == 2].all()
    assert got.present.all() and not got.ids.attempt.any()


def test_a_drawn_first_turn_that_is_given_again_has_the_same_continuation():
    """Keys are of turn and position, so that nothing else can tell the two apart."""
    drawn = sample()
    lines, owners = [], []
    for tokens, owner, _ in rows(drawn):
        begun = owner.index(2)
        lines.append(tokens[:begun])
        owners.append(owner[:begun])
    ids = row_ids(*[drawn.ids.draw] * 2, drawn.ids.sample)
    again = prompts_of(lines, plan=GIVEN, owners=owners, ids=ids)
    got = sample(again, GIVEN, with_(group_size=1))
    want = [(tokens, owner, [False, cut[1]]) for tokens, owner, cut in rows(drawn)]
    assert rows(got) == want


def test_rows_of_one_batch_may_begin_with_different_turns():
    """Turn 1 drawn here, given there, and three turns of which two are given."""
    lines = [[3, 4, 5], [6, 2, 1, 3, 2, 5, 0, 7, 8], [1, 2, 0, 7, 3, 3, 0, 8]]
    owners = [[], [0, 0, 0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 0, 2, 2, 2, 0]]
    drawn = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1]], bool)
    usual = [(), (7, 8), (8,)]
    prompts = prompts_of(
        lines,
        plan=THREE,
        draws=[5, 9, 7],
        owners=owners,
        instructions=[usual] * 3,
        drawn=drawn,
        trained=drawn,
    )
    got = sample(prompts, THREE)
    assert rows(got) == naive(prompts, THREE)
    assert (got.ids.attempt == np.repeat([1, 0, 0], 3) * got.ids.sample).all()
    for row in range(9):
        own = set(got.turn[row][got.sampled[row]].tolist())
        assert own == set((1 + np.flatnonzero(drawn[row // 3])).tolist())


def test_a_row_without_a_second_turn_ends_after_its_first():
    """Stopped or cut: no instruction follows, and the other rows draw what they always do."""
    there = np.array([[True, True], [True, False]])
    without = PROMPTS.replace(present=there, drawn=there, trained=there)
    whole, got = sample(), sample(without)
    assert rows(got) == naive(without)
    assert rows(got)[:3] == rows(whole)[:3]
    for row in (3, 4, 5):
        end = got.length[row]
        assert end == np.flatnonzero(whole.turn[row] == 1)[-1] + 1
        assert got.tokens[row, :end].tolist() == whole.tokens[row, :end].tolist()
        assert got.truncated[row].tolist() == [whole.truncated[row, 0], False]
    assert got.present.tolist() == np.repeat(there, 3, axis=0).tolist()
    assert got.truncated[3:, 0].any() and not got.truncated[3:, 0].all()


def test_a_row_that_draws_nothing_is_left_as_it_is():
    """As rows are that pad a batch."""
    nothing = np.array([[True, True], [False, False]])
    padded = PROMPTS.replace(present=nothing, drawn=nothing, trained=nothing)
    got = sample(padded)
    assert rows(got)[:3] == rows(sample())[:3]
    assert rows(got)[3:] == [(LINES[1], [0] * 4, [False, False])] * 3
    assert not got.sampled[3:].any() and not got.logprobs[3:].any() and not got.present[3:].any()


FORCED = turns(3, sources=("sampled", "forced", "sampled"), texts=("", "56", ""))
# Behind turn 1: its stop if it was cut, an instruction, the forced turn 2 = 5 6 0, another
# instruction; row 1 has other instructions and another text.
MIDDLES = [(7, 8, 5, 6, 0, 8, 7), (8, 5, 0, 7)]
MIDDLE_TURNS = [[0, 0, 0, 2, 2, 2, 0, 0], [0, 0, 2, 2, 0, 0, 0, 0]]


def test_a_forced_middle_turn_stands_between_the_drawn_ones():
    forced_turn = np.zeros((2, 3, 8), np.int32)
    forced_turn[:, 2] = MIDDLE_TURNS
    prompts = asked(
        FORCED, instructions=[[(), (), ids] for ids in MIDDLES], forced_turn=forced_turn
    )
    got = sample(prompts, FORCED)
    assert rows(got) == naive(prompts, FORCED)
    for row, (line, owner, cut) in enumerate(rows(got)):
        behind = max(np.flatnonzero(np.array(owner) == 1)) + 1
        size = prompts.forced_length[row // 3, 2]
        want = [STOPS[0]] * cut[0] + list(MIDDLES[row // 3])
        assert line[behind : behind + len(want)] == want
        assert owner[behind : behind + len(want)] == [0] * cut[0] + MIDDLE_TURNS[row // 3][1:size]
        assert owner[behind + len(want)] == 3
    assert (got.sampled == np.isin(got.turn, [1, 3])).all()
    assert (got.trained == got.sampled).all() and not got.logprobs[got.turn == 2].any()
    assert got.truncated[:, 0].any() and not got.truncated[:, 0].all()
    assert not got.truncated[:, 1].any()


def digits(name, instruction):
    return Task(
        name=name, prompt=lambda p: p.prompt, instruction=instruction, grade=lambda *_: None
    )


ENCODED = {
    "nothing is forced behind a given attempt": (GIVEN, [("345", "26"), ("6213", "")]),
    "a single turn": (ONE, [("345",), ("6213",)]),
    "two tasks, a forced turn between": (FORCED, [("345",), ("6213",)]),
}


@pytest.mark.parametrize("case", ENCODED)
def test_the_encoders_rows_are_drawn_as_by_a_plain_loop(case):
    plan, rows_begin = ENCODED[case]
    tasks = {"": digits("one", "78"), "other": digits("other", "7")}
    problems = [
        Problem(id=text, prompt=text, given=tuple(given), task=name)
        for (text, *given), name in zip(rows_begin, tasks, strict=True)
    ]
    made = Encoder(chat=DigitChat(), tasks=tasks, plan=plan, prompt_limit=5)
    prompts = made.prompts(problems, DRAWS, samples=2)
    got = sample(prompts, plan)
    assert rows(got) == naive(prompts, plan)
    assert got.tokens.shape[1] == made.row_length()
    assert got.ids.sample.tolist() == [2, 3, 4] * 2
    assert {turn for _, owner, _ in rows(got) for turn in owner} == {0, *range(1, plan.turns + 1)}


def test_what_is_drawn_but_not_trained_is_marked_as_such():
    plan = turns(2, trained=(False, True))
    got = sample(asked(plan), plan)
    assert rows(got) == rows(sample())
    assert (got.sampled == (got.turn > 0)).all() and (got.trained == (got.turn == 2)).all()
    np.testing.assert_array_equal(got.logprobs, sample().logprobs)


def test_each_segment_ends_at_a_tile_and_the_last_holds_all():
    """Turns of 20, so 24 slots each, and 4 tokens between them in one block of 8."""
    plan = turns(2, 20)
    assert segment_slots(plan, 4, SamplingConfig()) == [56]
    assert segment_slots(plan, 4, SamplingConfig(decode_segments=3)) == [32, 48, 56]
    # Guesses of 3 tokens may go 8 iterations of 4 beyond the limit.
    drafts = SamplingConfig(decode_segments=2, draft_tokens=3)
    assert segment_slots(plan, 4, drafts) == [32, 56 + 32]
    assert forced_blocks(4) == (1, 8) and forced_blocks(50) == (4, 14)
    assert loop_sizes(10, SamplingConfig(row_sizes=3)) == [10, 5, 3]


def test_iterations_of_full_turns_are_those_of_the_loops_over_all_rows():
    """Turns of 20, so 24 slots, with a block of 8 between: 56 slots, of which 32 in the first."""
    plan, whole = turns(2, 20), SamplingConfig(row_sizes=2)
    # One block before turn 2; 20 iterations over all rows, none over half.
    assert loop_trips(plan, 4, whole, np.full((1, 8, 2), 20)) == [[0, 1], [20, 20], [0, 0]]
    # On several devices an iteration of the loop is eight of a row.
    assert loop_trips(plan, 4, whole, np.full((4, 8, 2), 20)) == [[0, 1], [3, 3], [0, 0]]
    # Turn 2 begins with slot 32, so in the second segment; the drafted loops stand before.
    drafts = SamplingConfig(row_sizes=1, decode_segments=2, draft_tokens=3)
    found = loop_trips(plan, 4, drafts, np.full((1, 8, 2), 20))
    assert found == [[0, 1], [0, 0], [20, 0], [0, 0], [0, 20]]
    assert loop_trips(turns(1, 20), 0, whole, np.full((1, 1, 1), 20)) == [[20]]


def test_iterations_fall_to_smaller_arrays_as_rows_end():
    """Four rows until two have ended, two until one has, then the last, on its fullest shard."""
    plan, config = turns(1, 20), SamplingConfig(row_sizes=3)
    one = np.array([[[5], [1], [9], [2]]])
    assert loop_trips(plan, 0, config, one) == [[2], [3], [4]]
    two = np.concatenate([np.ones_like(one), one])
    assert loop_trips(plan, 0, config, two) == [[1], [0], [1]]
    # With the first of two segments full after 16 slots, the next goes on in the same sizes.
    longer = SamplingConfig(row_sizes=3, decode_segments=2)
    assert segment_slots(plan, 0, longer) == [16, 24]
    late = np.array([[[20], [18], [17], [1]]])
    assert loop_trips(plan, 0, longer, late) == [[16], [0], [0], [1], [1], [2]]


@pytest.mark.parametrize("shards", [1, 2])
def test_iterations_are_those_that_the_program_takes(shards):
    """Counted by it for each row: iterations of the arrays that it was in, and forced tokens."""
    rng = np.random.default_rng(3)
    limits = rng.integers(1, 20, (2, 4, 2)).astype(np.int32)
    plan = turns(2, 20)
    config = SamplingConfig(group_size=4, turn_limit=20, row_sizes=3, decode_segments=3)
    block = PROMPTS.forced.shape[2]
    draw = partial(
        sample_dialogues, Decoder(MODEL), plan=plan, stops=(-1,), config=config, shards=shards
    )
    prompts = PROMPTS.replace(turn_limits=limits)
    episodes = jax.jit(draw)(random_params(MODEL), prompts, KEY)
    lengths = limits.reshape(shards, -1, 2)
    forced, *drawn = loop_trips(plan, block, config, lengths)
    sizes = loop_sizes(8 // shards, config) * len(segment_slots(plan, block, config))
    each = np.sum(drawn, axis=1) * (1 if shards == 1 else 8)
    expected = 8 * sum(forced) * forced_blocks(block)[1] + shards * int(each @ sizes)
    assert episodes.effort.computed.sum() == expected


@pytest.mark.parametrize("draft_tokens", [0, 3])
@pytest.mark.parametrize("shards", [1, 2])
def test_rows_that_change_places_in_the_cache_draw_what_copied_ones_do(shards, draft_tokens):
    rng = np.random.default_rng(5)
    prompts = PROMPTS.replace(turn_limits=rng.integers(1, 20, (2, 4, 2)).astype(np.int32))
    config = SamplingConfig(
        group_size=4, turn_limit=20, row_sizes=3, decode_segments=3, draft_tokens=draft_tokens
    )

    def draw(in_place):
        run = partial(
            sample_dialogues,
            Decoder(MODEL),
            plan=turns(2, 20),
            stops=(-1,),
            config=config,
            shards=shards,
            in_place=in_place,
        )
        return jax.tree.map(np.asarray, jax.jit(run)(random_params(MODEL), prompts, KEY))

    copied, moved = draw(False), draw(True)
    assert rows(moved) == rows(copied)
    np.testing.assert_array_equal(moved.effort.computed, copied.effort.computed)
    np.testing.assert_allclose(moved.logprobs, copied.logprobs, atol=ROUNDING)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_size": 0}, r"sampling.group_size is 0; set at least 1"),
        ({"turn_limit": -2}, r"sampling.turn_limit is -2; set at least 1"),
        ({"temperature": -0.5}, r"sampling.temperature is -0.5; set a finite value >= 0"),
        (
            {"prompt_limit": 9, "row_limit": 9},
            r"sampling.row_limit is 9; set more than sampling.prompt_limit 9, or 0",
        ),
    ],
)
def test_impossible_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**fields)


def test_a_cpu_reads_and_writes_the_cache_where_it_lies():
    """No copy of a layer's keys or values in the loop that draws, which ran at every token."""
    decoder, params = Decoder(MODEL), split_layers(random_params(MODEL), MODEL.layers)
    draw = partial(sample_dialogues, decoder, plan=PLAN, stops=STOPS, config=SAMPLING)
    text = jax.jit(draw).lower(params, PROMPTS, KEY).compile().as_text()
    slots = segment_slots(PLAN, PROMPTS.forced.shape[2], SAMPLING)[-1]
    rows = SAMPLING.group_size * len(PROMPTS.length)
    shape = rf"f32\[1,{rows},{MODEL.kv_heads},{slots},{MODEL.head_dim}\]"
    bodies = [part for part in text.split("\n\n") if "_dynamic-update-slice" in part]
    written = [part for part in bodies if re.search(shape, part)]
    assert written, "the cache is not where this test looks for it"
    found = [len(re.findall(shape + r"\S* copy\(", part)) for part in written]
    assert found == [0] * len(written)
