"""Schedules and Adam's first steps by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_jax.rl.optimizer import OptimizerConfig, learning_rate, make_optimizer, matrix_axes


def rates(count=11, **fields):
    schedule = learning_rate(OptimizerConfig(learning_rate=1.0, **fields), 10)
    return [float(schedule(step)) for step in range(count)]


def test_constant_rate():
    assert rates() == [1.0] * 11


def test_warmup_rises_and_joins_the_rest_and_no_update_has_rate_zero():
    assert rates(warmup=4) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 8)
    assert rates(warmup=1) == rates(warmup=0)


def test_linear_falls_to_zero_with_the_last_update():
    assert rates(schedule="linear") == pytest.approx([1 - step / 10 for step in range(11)])
    falling = [1 - step / 6 for step in range(7)]
    assert rates(schedule="linear", warmup=4) == pytest.approx([0.25, 0.5, 0.75, 1.0, *falling])


def test_cosine_falls_to_zero_with_the_last_update():
    want = [(1 + np.cos(np.pi * step / 10)) / 2 for step in range(11)]
    assert rates(schedule="cosine") == pytest.approx(want, abs=1e-6)


def run(gradients, params=2.0, **fields):
    """One parameter after each of some updates."""
    optimizer = make_optimizer(OptimizerConfig(**({"learning_rate": 0.1} | fields)), len(gradients))
    value = jnp.array([params])
    state, out = optimizer.init(value), []
    for gradient in gradients:
        moves, state = optimizer.update(jnp.array([gradient]), state, value)
        value = optax.apply_updates(value, moves)
        out.append(float(value[0]))
    return out


def test_adam_by_hand():
    m = v = 0.0
    x, want = 2.0, []
    for count, g in enumerate([3.0, -1.0, 0.5], 1):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        x -= 0.1 * (m / (1 - 0.8**count)) / (np.sqrt(v / (1 - 0.9**count)) + 1e-8)
        want.append(x)
    got = run([3.0, -1.0, 0.5], b1=0.8, b2=0.9, clip_norm=None)
    assert got == pytest.approx(want, rel=1e-5)


def test_clipping_bounds_the_global_norm():
    """A large gradient counts as one of norm 1: Adam's memory shows it."""
    clipped = run([30.0, 0.5], clip_norm=1.0)
    assert clipped == pytest.approx(run([1.0, 0.5], clip_norm=None), rel=1e-5)
    assert clipped[1] != pytest.approx(run([30.0, 0.5], clip_norm=None)[1], rel=1e-3)


def test_weight_decay_shrinks_apart_from_the_gradient():
    assert run([0.0], weight_decay=0.5)[0] == pytest.approx(2.0 - 0.1 * 0.5 * 2.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": 0.0}, r"optimizer.learning_rate is 0.0; set a value > 0"),
        ({"learning_rate": float("nan")}, r"optimizer.learning_rate is nan; set a value > 0"),
        ({"schedule": "cosin"}, r"optimizer.schedule is 'cosin'; choose one of constant, cosine"),
    ],
)
def test_impossible_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)


def test_muon_orthogonalises_matrices_layer_by_layer():
    """One step from zero momentum is, layer by layer, near an orthogonal matrix times the rate."""
    config = OptimizerConfig(kind="muon", learning_rate=0.5, clip_norm=None)
    rng = np.random.default_rng(0)
    params = {
        "gate": jnp.zeros((2, 4, 4)),
        "query": jnp.zeros((2, 4, 2, 2)),
        "out": jnp.zeros((2, 2, 2, 4)),
        "scale": jnp.zeros(4),
    }

    def slope_like(x):
        """Per layer a matrix with known, well-conditioned singular values."""
        if x.ndim == 1:
            return jnp.asarray(rng.normal(size=x.shape), jnp.float32)
        frames = (np.linalg.svd(rng.normal(size=(4, 4))) for _ in range(2))
        layers = [u @ np.diag([1.0, 0.8, 0.6, 0.4]) @ v for u, _, v in frames]
        return jnp.asarray(np.reshape(layers, x.shape), jnp.float32)

    gradient = jax.tree.map(slope_like, params)
    muon = make_optimizer(config, 10)
    updates, _ = muon.update(gradient, muon.init(params), params)
    for name in ("gate", "query", "out"):
        for layer, slope in zip(updates[name], gradient[name], strict=True):
            step, slope = np.reshape(layer, (4, 4)), np.reshape(slope, (4, 4))
            singular = np.linalg.svd(step, compute_uv=False)
            # Five Newton-Schulz steps leave singular values between 0.5 and 1.3 of the rate.
            assert np.all(singular > 0.5 * 0.3) and np.all(singular < 0.5 * 1.4), name
            left, _, right = np.linalg.svd(slope)
            assert np.sum(step * (left @ right)) < -0.5 * 2.0, name  # downhill, same frame
    # Optax's Muon runs Adam with Nesterov momentum, whose first step is longer by this factor.
    nesterov = 1 + config.b1 * (1 - config.b1) / (1 - config.b1**2)
    wanted = -0.5 * config.adam_share * nesterov * np.sign(gradient["scale"])
    np.testing.assert_allclose(updates["scale"], wanted, rtol=1e-3)


def test_muon_knows_what_an_adapters_halves_read_and_write():
    """Per layer, `a` maps the target's inputs to the rank and `b` the rank to its outputs."""
    layers, width, heads, head, rank, mlp = 2, 12, 3, 4, 5, 7
    sizes = {
        "query": ((width, rank), (rank, heads, head)),
        "out": ((heads, head, rank), (rank, width)),
        "down": ((mlp, rank), (rank, width)),
    }
    shapes = {
        name: {half: jnp.zeros((layers, *s)) for half, s in zip("ab", pair, strict=True)}
        for name, pair in sizes.items()
    }
    found = matrix_axes({"block": shapes})["block"]
    axes = {
        name: {half: (tuple(n.reduction_axis), tuple(n.output_axis)) for half, n in pair.items()}
        for name, pair in found.items()
    }
    flat = {"a": ((1,), (2,)), "b": ((1,), (2,))}
    assert axes["down"] == flat
    assert axes["query"] == flat | {"b": ((1,), (2, 3))}
    assert axes["out"] == flat | {"a": ((1, 2), (3,))}
