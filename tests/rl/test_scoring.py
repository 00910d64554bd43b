"""Scores at the policy's tokens against a full forward pass that expands everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.model.decoder import Decoder
from score_jax.rl.scoring import hidden_states, score_tokens, scored_positions
from tests.guarded import guarded
from tests.tiny import GEMMA, MODEL, naive_logprobs, random_params, row_logits, rows_of

LINES = [  # tokens, turn
    ([3, 4, 5, 2, 1, 0, 7, 8, 6, 0], [0, 0, 0, 1, 1, 1, 0, 0, 2, 2]),
    ([6, 5, 0, 0, 7, 8, 1, 2, 3, 4, 5], [0, 0, 1, 0, 0, 0, 2, 2, 2, 2, 2]),
    ([1, 2, 3, 4, 5, 7, 8], [0, 1, 1, 1, 1, 0, 0]),
]
EPISODES = rows_of(LINES, 2)
OWN = np.asarray(EPISODES.turn) > 0


def scores(config=MODEL, episodes=EPISODES, *, max_tokens=10, logits_chunk=4, reference=None):
    decoder, params = Decoder(config), random_params(config)

    @guarded
    @jax.jit
    def run(params, fixed, episodes):
        hidden = hidden_states(decoder, params, episodes.tokens)
        other = None
        if fixed is not None:
            other = (fixed, hidden_states(decoder, fixed, episodes.tokens))
        return score_tokens(
            decoder,
            params,
            hidden,
            episodes,
            max_tokens=max_tokens,
            logits_chunk=logits_chunk,
            reference=other,
        )

    return jax.tree.map(np.asarray, run(params, reference, episodes))


def distributions(config, params, tokens):
    """log p(. | tokens before t) in float64, shifted so that index t predicts token t."""
    logits = np.asarray(row_logits(config)(params, tokens), np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.pad(logprobs, ((0, 0), (1, 0), (0, 0)))[:, :-1]


@pytest.mark.parametrize("config", [MODEL, GEMMA], ids=["plain", "gemma"])
def test_scores_are_those_of_the_full_forward(config):
    reference = random_params(config, seed=1)
    got = scores(config, reference=reference)
    policy = distributions(config, random_params(config), EPISODES.tokens)
    other = distributions(config, reference, EPISODES.tokens)
    logprobs = naive_logprobs(config, random_params(config), EPISODES.tokens)
    entropy = -(np.exp(policy) * policy).sum(-1)
    kl = (np.exp(policy) * (policy - other)).sum(-1)
    np.testing.assert_allclose(got.logprobs, np.where(OWN, logprobs, 0), atol=1e-5)
    np.testing.assert_allclose(got.entropy, np.where(OWN, entropy, 0), atol=1e-5)
    np.testing.assert_allclose(got.kl, np.where(OWN, kl, 0), atol=1e-5)
    assert got.kl[OWN].min() > 1e-4


@pytest.mark.parametrize(("max_tokens", "logits_chunk"), [(10, 1), (10, 3), (10, 100), (30, 7)])
def test_chunks_do_not_change_the_scores(max_tokens, logits_chunk):
    base, got = scores(), scores(max_tokens=max_tokens, logits_chunk=logits_chunk)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), base, got)


def full_scores(config, params, reference, tokens):
    """Log-probability, entropy and KL at every token, of logits of whole rows."""
    # One token more, since a row's first token is predicted by nothing.
    logits = [row_logits(config)(x, tokens)[:, :-1] for x in (params, reference)]
    own, other = map(jax.nn.log_softmax, logits)
    chosen = jnp.take_along_axis(own, tokens[:, 1:, None], -1)[..., 0]
    found = chosen, -(jnp.exp(own) * own).sum(-1), (jnp.exp(own) * (own - other)).sum(-1)
    return [jnp.pad(x, ((0, 0), (1, 0))) for x in found]


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "made again"])
@pytest.mark.parametrize("logits_chunk", [1, 4, 100])  # in a loop; unrolled, the last skipped; one
@pytest.mark.parametrize("config", [MODEL, GEMMA], ids=["plain", "gemma"])
def test_the_gradient_is_that_of_the_full_forward(config, logits_chunk, keep):
    decoder, params = Decoder(config), random_params(config)
    reference = random_params(config, seed=1)
    weights = jax.random.normal(jax.random.key(0), (3, *EPISODES.tokens.shape)) * OWN

    def whole(params):
        return sum(map(jnp.sum, weights * jnp.stack(full_scores(
            config, params, reference, EPISODES.tokens))))  # fmt: skip

    def by_chunks(params):
        hidden, other = (hidden_states(decoder, x, EPISODES.tokens) for x in (params, reference))
        found = score_tokens(
            decoder, params, hidden, EPISODES, max_tokens=10, logits_chunk=logits_chunk,
            keep_logits=keep, reference=(reference, other),
        )  # fmt: skip
        return jnp.sum(weights * jnp.stack([found.logprobs, found.entropy, found.kl]))

    got, there = (guarded(jax.jit(jax.value_and_grad(f)))(params) for f in (by_chunks, whole))
    np.testing.assert_allclose(got[0], there[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got[1], there[1]
    )


def test_without_a_reference_the_kl_is_zero():
    assert not scores().kl.any()


def test_scores_sampled_dialogues_as_the_sampler_did():
    from tests.rl.test_sampling import sample

    episodes = sample()
    got = scores(episodes=jax.tree.map(jnp.asarray, episodes))
    assert episodes.sampled.sum() > 30
    np.testing.assert_allclose(got.logprobs, episodes.logprobs, atol=1e-4)


def test_sampled_and_trained_tokens_are_scored_and_no_others():
    """Turn 1 of row 0 was given, row 1 is worked, row 2 drawn but not trained."""
    sampled, trained = OWN.copy(), OWN.copy()
    sampled[0, :6] = trained[0, :6] = False
    sampled[1], trained[2] = False, False
    marked = EPISODES.replace(sampled=jnp.asarray(sampled), trained=jnp.asarray(trained))
    reference = random_params(MODEL, seed=1)
    base, got = scores(reference=reference), scores(episodes=marked, reference=reference)
    scored = OWN.copy()
    scored[0, :6] = False
    for name in ("logprobs", "entropy", "kl"):
        want = np.where(scored, getattr(base, name), 0.0)
        np.testing.assert_allclose(getattr(got, name), want, atol=1e-6)
        assert np.abs(getattr(base, name)[0, 3:6]).min() > 0


def test_padding_is_neither_read_nor_scored():
    """More of it, and whatever its token: the stop token, too."""
    base = scores()
    for padding in (0, 5):
        wide = scores(episodes=rows_of(LINES, 2, width=16, padding=padding))
        for name in ("logprobs", "entropy"):
            narrow, padded = getattr(base, name), getattr(wide, name)
            np.testing.assert_allclose(padded[:, : narrow.shape[1]], narrow, atol=1e-6)
            assert not padded[:, narrow.shape[1] :].any()


def test_scored_positions_lists_each_rows_own_tokens_first_to_last():
    chunks = np.asarray(scored_positions(jnp.asarray(OWN), 6, 4))
    assert chunks.shape == (2, 3, 4)
    for row, owner in enumerate(np.asarray(EPISODES.turn)):
        order = chunks[:, row].reshape(-1).tolist()
        own = np.flatnonzero(owner).tolist()
        assert order[: len(own)] == own
        assert len(set(order)) == len(order)


@pytest.mark.parametrize("max_tokens", [3, 5])
def test_scored_positions_are_never_more_than_a_row_has_but_fill_their_chunks(max_tokens):
    chunks = np.asarray(scored_positions(jnp.array([[False, True, True]]), max_tokens, 2))
    assert chunks.shape == (2, 1, 2)
    assert chunks.reshape(-1).tolist() == [1, 2, 0, 0]
