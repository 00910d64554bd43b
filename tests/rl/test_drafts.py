"""Second turns that are guessed from the first: the same dialogues, in fewer iterations."""

import jax
import numpy as np
import pytest

from score_jax.rl.metrics import flat
from score_jax.rl.rollout import sampling_metrics
from score_jax.rl.row_loops import TRIAL
from tests.rl.test_sampling import (
    ATTEMPTS,
    BARE,
    GIVEN,
    ONE,
    THREE,
    asked,
    naive,
    rows,
    sample,
    turns,
    with_,
)
from tests.rl.test_sampling import CASES as PLAIN
from tests.tiny import MODEL, naive_dialogues, prompts_of, random_params

LONG = turns(2, 24)
CASES = {
    "two turns": {},
    "one guess at a time, three turns in branches": {
        "prompts": BARE,
        "plan": THREE,
        "sampling": {"draft_tokens": 1, "second_attempts": 2, "group_size": 4, "temperature": 0.7},
    },
    "from a given attempt": {"prompts": ATTEMPTS, "plan": GIVEN},
    "long turns over two lengths of the cache, smaller arrays": {
        "plan": LONG,
        "sampling": {"decode_segments": 2, "row_sizes": 3},
    },
    "rows that are full": {"sampling": {"row_limit": 12}},
    "windows, caps and norms": {"config": PLAIN["windows, caps and norms"]["config"]},
}


@pytest.mark.parametrize("case", CASES)
def test_drafts_change_no_token(case):
    options = dict(CASES[case])
    fields = options.pop("sampling", {})
    # A yield of 0 never stops to guess.
    drafted = with_(**{"draft_tokens": 4, "draft_yield": 0.0, **fields})
    got = sample(sampling=drafted, **options)
    plain = sample(sampling=with_(**{**fields, "draft_tokens": 0}), **options)
    assert rows(got) == rows(plain)
    np.testing.assert_allclose(got.logprobs, plain.logprobs, atol=1e-5)
    second = np.where(got.turn >= 2, 1, 0).sum(1)
    # Each iteration draws one token, and those that were guessed right.
    np.testing.assert_array_equal(got.effort.drafted + got.effort.accepted, second)
    assert not plain.effort.drafted.any()


def repeating_params():
    """A model whose next token depends on the last one alone: attempts repeat each other."""
    params = random_params(MODEL)
    silent = jax.tree_util.tree_map_with_path(
        lambda path, x: x * ("out" not in str(path) and "down" not in str(path)), params["blocks"]
    )
    return {**params, "blocks": silent}


def test_turns_that_repeat_take_fewer_iterations(monkeypatch):
    """Greedy turns of 24 tokens behind the same token: the second is the first again."""
    params = repeating_params()
    prompts = prompts_of([[3, 4, 8], [6, 2, 1, 8]], plan=LONG, draws=[5, 9])
    monkeypatch.setattr("tests.rl.test_sampling.random_params", lambda config: params)
    stops = (999,)  # of no token: turns are cut at their limits
    drafted = with_(draft_tokens=4, temperature=0.0, row_sizes=1)
    got = sample(prompts, LONG, drafted, stops=stops)
    want = naive_dialogues(
        MODEL, params, prompts, jax.random.key(20), LONG, with_(temperature=0.0), stops
    )
    assert rows(got) == want
    second = (got.turn == 2).sum(1)
    assert second.tolist() == [24] * 6
    assert (got.effort.drafted < 0.6 * second).all()
    np.testing.assert_array_equal(got.effort.drafted + got.effort.accepted, second)


def test_guessing_stops_where_it_does_not_pay():
    """A yield that no iteration reaches: after the trial the plain loop goes on."""
    hopeless = with_(draft_tokens=2, draft_yield=9.0)
    got = sample(plan=LONG, sampling=hopeless)
    assert rows(got) == rows(sample(plan=LONG))
    assert 0 < got.effort.drafted.max() <= TRIAL
    assert got.effort.drafted.sum() < (got.turn == 2).sum()


def test_first_turns_are_never_guessed():
    got = sample(asked(ONE), ONE, with_(draft_tokens=3))
    assert rows(got) == naive(asked(ONE), ONE)
    assert not got.effort.drafted.any()


def test_what_drawing_took_is_logged():
    """Drawn tokens by computed positions, and guesses that were right; of drawn rows only."""
    got = sample(plan=LONG, sampling=with_(draft_tokens=2, draft_yield=0.0))
    found = flat(sampling_metrics(got, 2))
    second, drawn = (got.turn == 2).sum(), (got.turn > 0).sum()
    assert found["sample/useful"] == pytest.approx(drawn / got.effort.computed.sum())
    iterations = got.effort.drafted.sum()
    want = (second - iterations) / (2 * iterations)
    assert found["sample/guessed_right"] == pytest.approx(want)
    assert set(flat(sampling_metrics(got, 0))) == {"sample/useful"}
    assert sampling_metrics(got.replace(effort=None), 2) == {}
