"""Adapters: exact, frozen base, no effect at first, axes for every half."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.model.config import ModelConfig
from score_jax.model.decoder import Decoder, decode
from score_jax.model.lora import INPUT_AXES, LoraConfig, attach, init_lora, merge

CONFIG = ModelConfig(
    vocab_size=31, layers=3, width=12, heads=4, kv_heads=2, head_dim=6, mlp_dim=20, qkv_bias=True
)
LORA = LoraConfig(rank=3, alpha=6.0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 31, (2, 9)))
POSITIONS = jnp.broadcast_to(jnp.arange(9), (2, 9))


@pytest.fixture(scope="module")
def base():
    return jax.jit(Decoder(CONFIG).init)(jax.random.key(0), TOKENS, POSITIONS)["params"]


def filled(boxed, lora=LORA):
    """An adapter whose b halves are not zero."""
    adapter = nn.unbox(init_lora(jax.random.key(1), boxed, lora))
    return jax.tree.map(lambda x: 0.3 * jax.random.normal(jax.random.key(2), x.shape), adapter)


def plain_logits(params, config=CONFIG):
    def run(model):
        return model.logits(model(TOKENS, POSITIONS))

    return Decoder(config).apply({"params": params}, method=run)


logits = jax.jit(plain_logits)


def test_a_fresh_adapter_changes_nothing(base):
    adapter = nn.unbox(init_lora(jax.random.key(1), base, LORA))
    plain = nn.unbox(base)
    np.testing.assert_array_equal(logits(attach(plain, adapter, LORA)), logits(plain))
    jax.tree.map(np.testing.assert_array_equal, merge(plain, adapter, LORA), plain)


def test_merge_adds_the_scaled_product_layer_by_layer(base):
    plain, adapter = nn.unbox(base), filled(base)
    merged = merge(plain, adapter, LORA)
    pair = jax.tree.map(np.asarray, adapter["blocks"]["attention"]["out"])
    before = np.asarray(plain["blocks"]["attention"]["out"])
    for layer in range(CONFIG.layers):
        for head, channel, out in [(0, 0, 0), (3, 5, 11), (2, 1, 7)]:
            product = sum(
                pair["a"][layer, head, channel, r] * pair["b"][layer, r, out] for r in range(3)
            )
            expected = before[layer, head, channel, out] + 2.0 * product
            found = merged["blocks"]["attention"]["out"][layer, head, channel, out]
            np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(merged["embedding"], plain["embedding"])


@pytest.mark.parametrize("target", INPUT_AXES)
def test_an_attached_adapter_is_the_merged_one(base, target):
    plain = nn.unbox(base)

    def keep(path, leaf):
        return leaf if path[-2].key == target else jnp.zeros_like(leaf)

    adapter = jax.tree_util.tree_map_with_path(keep, filled(base))
    attached, merged = logits(attach(plain, adapter, LORA)), logits(merge(plain, adapter, LORA))
    np.testing.assert_allclose(attached, merged, atol=2e-5)
    assert np.abs(attached - logits(plain)).max() > 1e-3


def test_gradients_reach_the_adapter_and_not_the_base(base):
    plain, adapter = nn.unbox(base), filled(base)

    def loss(base, adapter):
        remat = replace(CONFIG, remat="full")
        return jnp.sum(jnp.square(plain_logits(attach(base, adapter, LORA), remat)))

    to_base, to_adapter = jax.jit(jax.grad(loss, argnums=(0, 1)))(plain, adapter)
    assert all(not leaf.any() for leaf in jax.tree.leaves(to_base))
    assert all(leaf.any() for leaf in jax.tree.leaves(to_adapter))

    def merged_loss(adapter):
        return jnp.sum(jnp.square(plain_logits(merge(plain, adapter, LORA))))

    expected = jax.jit(jax.grad(merged_loss))(adapter)
    jax.tree.map(
        lambda found, right: np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-3),
        to_adapter,
        expected,
    )


def test_every_half_has_logical_axes_and_a_small_size(base):
    shapes = jax.eval_shape(lambda key: init_lora(key, base, LORA), jax.random.key(0))
    boxes = jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert len(boxes) == 2 * len(INPUT_AXES)
    for box in boxes:
        assert len(box.names) == box.value.ndim
        assert box.names[0] == "layers"
        assert box.value.shape[box.names.index(None)] == LORA.rank or "head_dim" in box.names
    out = shapes["blocks"]["attention"]["out"]
    assert out["a"].names == ("layers", "heads", "head_dim", None)
    assert out["b"].names == ("layers", None, "embed")


def test_cached_decoding_sees_the_adapter(base):
    params = attach(nn.unbox(base), filled(base), LORA)
    run = jax.jit(partial(decode, Decoder(CONFIG)))
    full, _ = run(params, TOKENS, POSITIONS)
    _, cache = run(params, TOKENS[:, :6], POSITIONS[:, :6])
    rest, _ = run(params, TOKENS[:, 6:], POSITIONS[:, 6:], [cache])
    np.testing.assert_allclose(rest, full[:, 6:], atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "lora.rank is 0; set at least 1"),
        ({"alpha": float("nan")}, "lora.alpha is nan"),
        ({"targets": ("embedding",)}, "lora.targets is .*; choose some of query, key"),
        ({"targets": ()}, "lora.targets is"),
    ],
)
def test_bad_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**fields)
