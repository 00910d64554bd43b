"""Log-probabilities, KL estimators and per-turn sums against numbers made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.rl import logprobs

P = np.array([0.5, 0.25, 0.25])
Q = np.array([0.25, 0.25, 0.5])
LOG_P, LOG_Q = np.log(P), np.log(Q)
TURN = np.array([[0, 1, 1, 0, 2, 2, 0], [0, 0, 1, 2, 2, 2, 2]])


def test_log_softmax_is_float32_whatever_comes_in():
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0]])).astype(jnp.bfloat16)
    got = logprobs.log_softmax(logits + 7)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(np.exp(got), [[0.125, 0.25, 0.625]], atol=0.02)
    np.testing.assert_allclose(np.exp(got).sum(), 1.0, atol=1e-6)


def test_select_logprob_reads_the_tokens_own_entry():
    table = jnp.asarray([[LOG_P, LOG_Q]])
    got = logprobs.select_logprob(table, jnp.array([[2, 0]]))
    np.testing.assert_allclose(got, [[np.log(0.25), np.log(0.25)]], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 11, 128, 129, 5000])
def test_sums_over_the_vocabulary(size):
    """Whether its ids fill the groups in which a CPU adds them up or not."""
    terms = np.random.default_rng(0).normal(size=(2, 3, 4, size)).astype(np.float32)
    got = logprobs.vocabulary_sums(*map(jnp.asarray, terms))
    np.testing.assert_allclose(got, terms.astype(np.float64).sum(-1), atol=1e-4)


def test_scores_over_a_large_vocabulary_are_exact_to_rounding():
    """50,257 ids: a sum of them one after the other would be off by some 1e-5."""
    logits, reference = 2 * jax.random.normal(jax.random.key(0), (2, 1, 3, 50_257))
    own, other = (np.asarray(x, np.float64) for x in (logits, reference))
    own, other = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (own, other))
    tokens = jnp.array([[7, 50_256, 0]])
    got, _ = logprobs.score_logits(logits, tokens, reference)
    chosen = np.take_along_axis(own, np.asarray(tokens)[..., None], -1)[..., 0]
    np.testing.assert_allclose(got[0], chosen, atol=3e-6)
    np.testing.assert_allclose(got[1], -(np.exp(own) * own).sum(-1), rtol=1e-6)
    np.testing.assert_allclose(got[2], (np.exp(own) * (own - other)).sum(-1), rtol=3e-6)


def test_exact_kl_by_hand_and_its_direction():
    # 1/2 log(2) + 1/4 log(1) + 1/4 log(1/2)
    assert logprobs.exact_kl(jnp.asarray(LOG_P), jnp.asarray(LOG_Q)) == pytest.approx(
        0.25 * np.log(2)
    )
    skewed = np.log([0.9, 0.05, 0.05])
    there = sum(np.exp(skewed) * (skewed - LOG_P))
    assert logprobs.exact_kl(jnp.asarray(skewed), jnp.asarray(LOG_P)) == pytest.approx(there)
    assert there != pytest.approx(sum(P * (LOG_P - skewed)), rel=0.1)


@jax.custom_vjp
def closed(logits, tokens, reference):
    """`score_logits` with its gradient, as the learner binds them."""
    return logprobs.score_logits(logits, tokens, reference)[0]


closed.defvjp(
    logprobs.score_logits,
    lambda kept, slopes: (logprobs.gradient_of_scores(kept, slopes), None, None),
)


def by_rule(logits, tokens, reference):
    """What `score_logits` returns, with the gradient that follows by rule."""
    own = logprobs.log_softmax(logits)
    kl = logprobs.exact_kl(own, logprobs.log_softmax(reference))
    return logprobs.select_logprob(own, tokens), -jnp.sum(jnp.exp(own) * own, axis=-1), kl


def random_logits():
    keys = jax.random.split(jax.random.key(0), 5)
    logits, reference = (3 * jax.random.normal(key, (2, 4, 11)) for key in keys[:2])
    tokens = jax.random.randint(keys[2], (2, 4), 0, 11)
    return logits, tokens, reference, jax.random.normal(keys[3], (3, 2, 4))


@pytest.mark.parametrize("part", [0, 1, 2], ids=["logprob", "entropy", "kl"])
def test_the_gradient_in_closed_form_is_the_one_by_rule(part):
    logits, tokens, reference, weights = random_logits()

    def total(scores, logits):
        return jnp.sum(weights[part] * scores(logits, tokens, reference)[part])

    got, there = (jax.value_and_grad(total, argnums=1)(f, logits) for f in (closed, by_rule))
    np.testing.assert_allclose(got[0], there[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], there[1], atol=2e-6)
    assert np.abs(got[1]).max() > 0.1


def test_without_a_reference_the_other_gradients_are_the_same_and_the_kl_is_zero():
    logits, tokens, reference, weights = random_logits()

    def total(logits, reference):
        logprob, entropy, kl = closed(logits, tokens, reference)
        return jnp.sum(weights[0] * logprob + weights[1] * entropy), kl

    slope, kl = jax.grad(total, has_aux=True)(logits, None)
    there, _ = jax.grad(total, has_aux=True)(logits, reference)
    np.testing.assert_array_equal(slope, there)
    assert not kl.any()


def test_the_reference_gets_no_gradient():
    logits, tokens, reference, weights = random_logits()
    slope = jax.grad(lambda x: jnp.sum(weights[2] * closed(logits, tokens, x)[2]))
    assert not slope(reference).any()


def test_sampled_estimators_by_hand():
    ratio = np.log(0.5 / 0.25)
    assert logprobs.k2(LOG_P[0], LOG_Q[0]) == pytest.approx(0.5 * ratio**2)
    assert logprobs.k3(LOG_P[0], LOG_Q[0]) == pytest.approx(0.5 - 1 + ratio)
    assert logprobs.k3(LOG_P[1], LOG_Q[1]) == 0


def test_k3_is_unbiased_and_never_negative():
    values = np.asarray(logprobs.k3(jnp.asarray(LOG_P), jnp.asarray(LOG_Q)))
    assert (values >= 0).all()
    assert P @ values == pytest.approx(0.25 * np.log(2), rel=1e-5)


def test_k3_keeps_its_precision_near_zero():
    """exp(x) - 1 - x of a small x in float32 would be all rounding error."""
    got = float(logprobs.k3(jnp.float32(-1.0), jnp.float32(-1.0 + 1e-3)))
    assert got == pytest.approx(0.5e-6, rel=0.05)


@pytest.mark.parametrize(
    ("estimator", "gradient"),
    [(logprobs.k2, LOG_P - LOG_Q), (logprobs.k3, 1 - Q / P)],
    ids=["k2", "k3"],
)
def test_gradients_of_the_estimators(estimator, gradient):
    """What multiplies the score: the log-ratio for k2, 1 - q/p for k3."""
    got = jax.vmap(jax.grad(estimator))(jnp.asarray(LOG_P), jnp.asarray(LOG_Q))
    np.testing.assert_allclose(got, gradient, rtol=1e-5, atol=1e-7)


def test_turn_mask_marks_each_turn_once():
    mask = np.asarray(logprobs.turn_mask(jnp.asarray(TURN), 2))
    assert mask.shape == (2, 2, 7)
    assert mask[0, 0].tolist() == [0, 1, 1, 0, 0, 0, 0]
    assert mask[0, 1].tolist() == [0, 0, 0, 0, 1, 1, 0]
    assert mask[1, 1].tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_sum_by_turn_leaves_out_prompt_instruction_and_padding():
    values = np.array([[100, 1, 2, 100, 4, 8, 100], [100, 100, 1, 2, 4, 8, 16]], float)
    got = logprobs.sum_by_turn(jnp.asarray(values), jnp.asarray(TURN), 2)
    np.testing.assert_array_equal(got, [[3, 12], [1, 30]])


def test_spread_to_tokens_gives_zero_to_tokens_of_no_turn():
    got = logprobs.spread_to_tokens(jnp.array([[3.0, -5.0], [2.0, 7.0]]), jnp.asarray(TURN))
    np.testing.assert_array_equal(got, [[0, 3, 3, 0, -5, -5, 0], [0, 0, 2, 7, 7, 7, 7]])
