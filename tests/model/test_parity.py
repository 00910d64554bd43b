"""Every family computes what transformers computes, from the same safetensors."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.model.cache import write_cache
from score_jax.model.decoder import Decoder, decode, split_layers
from score_jax.model.weights.load import load_params, model_config
from score_jax.types import Cache
from tests.reference_models import FAMILIES, build

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.slow  # test_decoder_families.py checks pinned values in seconds
TOLERANCE = 1e-4  # largest difference of a logit, in float32


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """A transformers model, and our decoder with its weights."""
    folder = tmp_path_factory.mktemp(request.param)
    reference = build(request.param)
    reference.save_pretrained(folder)
    config = model_config(str(folder))
    return reference, Decoder(config), {"params": load_params(str(folder), config)}


def reference_logits(reference, tokens, mask=None):
    with torch.no_grad():
        mask = None if mask is None else torch.tensor(mask)
        return reference(torch.tensor(tokens), attention_mask=mask).logits.numpy()


def full_logits(decoder, variables, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    def run(model):
        return model.logits(model(jnp.asarray(tokens), positions))

    return np.asarray(jax.jit(lambda v: decoder.apply(v, method=run))(variables))


def empty_cache(config, rows, slots):
    zeros = jnp.zeros((config.layers, rows, config.kv_heads, slots, config.head_dim))
    return Cache(keys=(zeros,), values=(zeros,), positions=jnp.full((rows, slots), -1))


def advance(decoder):
    """A jitted call on a block of tokens: logits and the written cache."""

    @jax.jit
    def step(variables, tokens, start, cache):
        positions = start[:, None] + jnp.arange(tokens.shape[1])
        params = split_layers(variables["params"], 1)
        hidden, new = decode(decoder, params, tokens, positions, [cache])
        logits = decoder.apply(variables, hidden, method="logits")
        return logits, write_cache(cache, new, start, positions)

    return step


def random_tokens(rows, length, seed=0):
    return np.random.default_rng(seed).integers(2, 97, (rows, length))


def test_full_forward(pair):
    reference, decoder, variables = pair
    tokens = random_tokens(3, 40)
    expected = reference_logits(reference, tokens)
    assert np.abs(expected).max() > 1, "logits too small to tell anything"
    assert np.abs(full_logits(decoder, variables, tokens) - expected).max() < TOLERANCE


def test_prefill_then_cached_decoding(pair):
    reference, decoder, variables = pair
    tokens = random_tokens(2, 40, seed=1)
    step, cache = advance(decoder), empty_cache(decoder.config, 2, 48)
    blocks = [(0, 23), (23, 24), *[(i, i + 1) for i in range(24, 40)]]
    found = []
    for start, end in blocks:
        at = jnp.full(2, start)
        logits, cache = step(variables, jnp.asarray(tokens[:, start:end]), at, cache)
        found.append(logits)
    difference = np.concatenate(found, axis=1) - reference_logits(reference, tokens)
    assert np.abs(difference).max() < TOLERANCE


def test_right_padding_changes_no_row(pair):
    reference, decoder, variables = pair
    tokens, lengths = random_tokens(3, 40, seed=2), [40, 17, 5]
    mask = np.arange(40)[None, :] < np.array(lengths)[:, None]
    padded = np.where(mask, tokens, 0)
    ours = full_logits(decoder, variables, padded)
    together = reference_logits(reference, padded, mask.astype(int))
    for row, length in enumerate(lengths):
        alone = reference_logits(reference, tokens[row : row + 1, :length])
        assert np.abs(ours[row, :length] - alone[0]).max() < TOLERANCE
        assert np.abs(ours[row, :length] - together[row, :length]).max() < TOLERANCE


def test_greedy_generation_of_64_tokens(pair):
    reference, decoder, variables = pair
    prompt, new = random_tokens(2, 9, seed=3), 64
    expected = reference.generate(
        torch.tensor(prompt),
        attention_mask=torch.ones(prompt.shape, dtype=torch.long),
        max_new_tokens=new,
        do_sample=False,
    ).numpy()
    step, cache = advance(decoder), empty_cache(decoder.config, 2, 9 + new)
    tokens, block = [prompt], jnp.asarray(prompt)
    for start in [0, *range(9, 9 + new - 1)]:
        logits, cache = step(variables, block, jnp.full(2, start), cache)
        block = jnp.argmax(logits[:, -1:], axis=-1)
        tokens.append(block)
    np.testing.assert_array_equal(np.concatenate(tokens, axis=1), expected)


FEATURES = {
    "window": None,
    "rope_scaling": None,
    "rope_local_base": None,
    "attention_cap": None,
    "logit_cap": None,
    "query_scale": None,
    "embedding_scale": False,
    "norm_plus_one": False,
}


def test_no_feature_could_be_dropped_unseen(pair):
    reference, decoder, variables = pair
    tokens = random_tokens(3, 40)
    expected = reference_logits(reference, tokens)
    for name, off in FEATURES.items():
        if getattr(decoder.config, name) != off:
            without = Decoder(replace(decoder.config, **{name: off}))
            difference = full_logits(without, variables, tokens) - expected
            assert np.abs(difference).max() > 100 * TOLERANCE, f"{name} makes no difference"
