"""Norm, rotary positions and soft cap against their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.model.config import ModelConfig, RopeScaling
from score_jax.model.layers import (
    GatedMlp,
    RmsNorm,
    layer_frequencies,
    layer_magnitudes,
    rope_frequencies,
    rotate,
    scaled_frequencies,
    soft_cap,
)

SIZES = {"vocab_size": 7, "layers": 2, "width": 6, "heads": 2, "kv_heads": 1}
SIZES |= {"head_dim": 4, "mlp_dim": 5}
CONFIG = ModelConfig(**SIZES)


def test_a_norm_has_unit_root_mean_square_times_its_scale():
    x = np.array([[3.0, -4.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    params = {"params": {"scale": jnp.arange(6.0)}}
    rms = math.sqrt(25 / 6)
    expected = [[0.0, -4.0 / rms, 0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_allclose(RmsNorm(CONFIG).apply(params, x), expected, rtol=1e-5)
    gemma = ModelConfig(**SIZES, norm_plus_one=True)
    expected = [[3.0 / rms, -8.0 / rms, 0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_allclose(RmsNorm(gemma).apply(params, x), expected, rtol=1e-5)


def test_a_norm_of_half_precision_is_taken_in_float32():
    x = jnp.full((1, 6), 300.0, jnp.float16)  # its square is beyond float16
    found = RmsNorm(CONFIG).apply({"params": {"scale": jnp.ones(6)}}, x)
    np.testing.assert_allclose(found, np.ones((1, 6)), rtol=1e-3)
    assert found.dtype == jnp.float16


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("silu", lambda v: v / (1 + math.exp(-v))),
        (
            "gelu_tanh",
            lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
        ),
        ("gelu", lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2)))),
    ],
)
def test_the_mlp_gates_with_its_activation(name, act):
    config = ModelConfig(**SIZES, activation=name)
    rng = np.random.default_rng(0)
    weights = {"gate": (6, 5), "up": (6, 5), "down": (5, 6)}
    params = {key: rng.normal(size=shape).astype(np.float32) for key, shape in weights.items()}
    x = rng.normal(size=(1, 1, 6)).astype(np.float32)
    gate, up = x[0, 0] @ params["gate"], x[0, 0] @ params["up"]
    expected = np.array([act(float(v)) for v in gate]) * up @ params["down"]
    found = GatedMlp(config).apply({"params": params}, x)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-4, atol=1e-6)


def test_rotation_turns_channel_pairs_by_position_times_frequency():
    x = np.array([1.0, 0.0, 0.0, 1.0], np.float32).reshape(1, 1, 1, 4)  # pairs (0, 2), (1, 3)
    found = rotate(x, jnp.array([[3]]), jnp.array([0.5, 0.1]))[0, 0, 0]
    expected = [math.cos(1.5), -math.sin(0.3), math.sin(1.5), math.cos(0.3)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_products_of_rotated_vectors_depend_on_distance_only():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    frequencies = 10.0 ** -jnp.arange(4.0)

    def product(at_q, at_k):
        return jnp.sum(
            rotate(q, jnp.array([[at_q]]), frequencies)
            * rotate(k, jnp.array([[at_k]]), frequencies)
        )

    np.testing.assert_allclose(product(9, 4), product(105, 100), rtol=1e-3)


def test_llama3_leaves_short_wavelengths_and_divides_long_ones():
    scaling = RopeScaling(kind="llama3", factor=8.0, original_length=8192)
    wavelengths = np.array([10.0, 2000.0, 4096.0, 9000.0, 1e6])
    found = scaled_frequencies(jnp.asarray(2 * np.pi / wavelengths), scaling)
    smooth = (8192 / 4096 - 1) / (4 - 1)
    factors = [1, 1, 1 / (smooth + (1 - smooth) / 8), 8, 8]
    np.testing.assert_allclose(found, 2 * np.pi / wavelengths / factors, rtol=1e-5)


YARN = [  # what transformers 5.24 computes for base 500 and heads of 16 channels
    (
        {"factor": 4.0, "original_length": 32},
        [1.0, 0.344897, 0.105737, 0.0243123, 0.0111803, 0.00514143, 0.00236435, 0.00108728],
        1.1386294,
    ),
    (
        {"factor": 4.0, "original_length": 32, "truncate": False}
        | {"beta_fast": 8.0, "beta_slow": 0.5},
        [1.0, 0.344428, 0.105306, 0.0243123, 0.0111803, 0.00514143, 0.00236435, 0.00108728],
        1.1386294,
    ),
    (
        {"factor": 8.0, "original_length": 256, "attention_factor": 1.09418},
        [1.0, 0.379387, 0.137458, 0.0461934, 0.0134164, 0.00257071, 0.00118218, 0.00054364],
        1.09418,
    ),
    (
        {"factor": 2.0, "original_length": 4096, "attention_factor": 0.7},
        [1.0, 0.459863, 0.211474, 0.0972492, 0.0409946, 0.0171381, 0.00709306, 0.00289941],
        0.7,
    ),
]


@pytest.mark.parametrize(("fields", "frequencies", "magnitude"), YARN)
def test_yarn_divides_slow_channels_only(fields, frequencies, magnitude):
    scaling = RopeScaling(kind="yarn", **fields)
    np.testing.assert_allclose(rope_frequencies(500.0, 16, scaling), frequencies, rtol=1e-5)
    assert scaling.magnitude == pytest.approx(magnitude, rel=1e-6)


def test_a_magnitude_multiplies_what_is_rotated():
    x = np.random.default_rng(0).normal(size=(1, 3, 1, 4)).astype(np.float32)
    frequencies, positions = jnp.array([0.5, 0.1]), jnp.arange(3)[None, :]
    plain = rotate(x, positions, frequencies)
    np.testing.assert_allclose(
        rotate(x, positions, frequencies, jnp.asarray(1.5)), 1.5 * plain, rtol=1e-6
    )


def test_each_kind_of_layer_has_its_own_scaling():
    yarn = RopeScaling(kind="yarn", factor=4.0, attention_factor=1.25)
    linear = RopeScaling(kind="linear", factor=2.0)
    fields = {"window": 3, "local_layers": (True, False), "rope_base": 1e6}
    split = fields | {"rope_local_base": 1e4, "rope_local_scaling": linear, "rope_scaling": yarn}
    config = ModelConfig(**SIZES, **split)
    np.testing.assert_allclose(layer_frequencies(config)[0], [1 / 2, 1e-2 / 2], rtol=1e-5)
    np.testing.assert_allclose(layer_magnitudes(config), [1.0, 1.25])
    same = ModelConfig(**SIZES, **fields, rope_scaling=yarn)
    np.testing.assert_allclose(layer_magnitudes(same), [1.25, 1.25])
    assert layer_magnitudes(ModelConfig(**SIZES, **fields, rope_scaling=linear)) is None


def test_local_layers_keep_their_own_base_unscaled():
    config = ModelConfig(
        **SIZES,
        window=3,
        local_layers=(True, False),
        rope_base=1e6,
        rope_local_base=1e4,
        rope_scaling=RopeScaling(kind="linear", factor=8.0),
    )
    expected = [[1.0, 1e-2], [1 / 8, 1e-3 / 8]]
    np.testing.assert_allclose(layer_frequencies(config), expected, rtol=1e-5)


def test_the_soft_cap_bounds_and_keeps_small_values():
    x = jnp.array([-1e4, -0.1, 0.1, 1e4])
    np.testing.assert_allclose(soft_cap(x, 30.0), [-30, -0.1, 0.1, 30], rtol=1e-4)
    assert soft_cap(x, None) is x
    assert jax.grad(lambda v: soft_cap(v, 30.0))(0.0) == 1.0
