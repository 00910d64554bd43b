"""Drawing a token in one step or two, and guessing what follows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.rl import draws
from score_jax.rl.draws import guess_continuation, sample_scored, sample_token

COUNT = 20_000
LARGE = 4_500  # ids: more than are drawn from at once, and no multiple of the groups


def large_logits():
    """Ten likely ids, in groups of their own and in shared ones, before 4,490 unlikely ones."""
    likely = [0, 1, 35, 36, 700, 701, 702, 2000, 4498, 4499]
    logits = np.full(LARGE, -4.0, np.float32)
    logits[likely] = np.linspace(4.0, 6.0, 10)
    return likely, jnp.asarray(logits)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_two_steps_draw_from_the_same_distribution(temperature):
    """Shares of 20,000 draws, of each likely id and of all others, within four deviations."""
    likely, logits = large_logits()
    keys = jax.random.split(jax.random.key(0), COUNT)
    draw = jax.jit(jax.vmap(lambda key: sample_token(key[None], logits[None], temperature)[0]))
    found = np.asarray(draw(keys))
    assert LARGE > draws.SMALL and found.min() >= 0 and found.max() < LARGE
    wide = np.exp(np.asarray(logits, np.float64) / temperature)
    for chosen in [[one] for one in likely] + [np.setdiff1d(np.arange(LARGE), likely)]:
        want = wide[chosen].sum() / wide.sum()
        deviation = np.sqrt(want * (1 - want) / COUNT)
        assert abs(np.isin(found, chosen).mean() - want) < 4 * deviation


def test_a_small_vocabulary_is_drawn_from_in_one_step():
    """As jax.random does it, so that results of small models stay what they were."""
    keys = jax.random.split(jax.random.key(1), 50)
    logits = jax.random.normal(jax.random.key(2), (50, 30))
    want = jax.vmap(jax.random.categorical)(keys, logits / 0.5)
    np.testing.assert_array_equal(sample_token(keys, logits, 0.5), want)


def test_a_draw_knows_its_own_key_and_logits_only():
    _, logits = large_logits()
    keys = jax.random.split(jax.random.key(3), 6)
    rows = logits + jax.random.normal(jax.random.key(4), (6, LARGE))
    whole = sample_token(keys, rows, 1.0)
    shaped = sample_token(keys.reshape(2, 3), rows.reshape(2, 3, -1), 1.0)
    np.testing.assert_array_equal(shaped.reshape(-1), whole)
    np.testing.assert_array_equal(sample_token(keys[4:5], rows[4:5], 1.0), whole[4:5])


def test_logprobs_are_those_at_temperature_one():
    keys = jax.random.split(jax.random.key(5), 4)
    logits = jax.random.normal(jax.random.key(6), (4, LARGE))
    tokens, logprobs = sample_scored(keys, logits, 0.3)
    wide = np.asarray(logits, np.float64)
    want = [row[t] - np.log(np.exp(row).sum()) for row, t in zip(wide, tokens, strict=True)]
    np.testing.assert_allclose(logprobs, want, atol=1e-5)
    greedy, _ = sample_scored(keys, logits, 0.0)
    np.testing.assert_array_equal(greedy, wide.argmax(1))


GUESSES = {
    # The row so far: an earlier turn between bars, then other tokens, then the turn that is drawn.
    "two tokens stand twice: the last place counts": ("1|23 4 23 5 9|77 23", 2, [5, 9]),
    "two tokens stand nowhere: the last of them counts": ("1|3 4 2 6 5|77 8 2", 2, [6, 5]),
    "a turn that has begun goes on as the earlier one": ("1|3 4 3 5 5|77 3", 1, [4, 3]),
    "the beginning is another token: its last place counts": ("1|3 4 2 4 5 5|77 4", 1, [5, 5]),
    "a place with too little behind it counts less": ("1|4 2 6 7 4 2|77 4 2", 2, [6, 7]),
    "tokens outside of the earlier turn do not count": ("234|5 2 9 6|23 4 2", 3, [9, 6]),
}


@pytest.mark.parametrize("case", GUESSES)
def test_guesses_by_hand(case):
    text, begun, want = GUESSES[case]
    ahead, earlier, behind = (
        [int(digit) for digit in part.replace(" ", "")] for part in text.split("|")
    )
    line = ahead + earlier + behind
    marks = [0] * len(ahead) + [1] * len(earlier) + [0] * len(behind)
    padded = np.zeros((1, 20), np.int32)
    padded[0, : len(line)] = line
    mask = np.zeros((1, 20), bool)
    mask[0, : len(line)] = marks
    found = guess_continuation(
        jnp.asarray(padded), jnp.array([len(line)]), jnp.asarray(mask), jnp.array([begun]), 2
    )
    assert found.tolist() == [want]
