"""Kernels against a dense softmax, forward and backward; splash attention interpreted on CPUs."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from score_jax.distributed import sharding
from score_jax.model import fused_attention as kernels
from score_jax.model.decoder import UNLIMITED, Decoder
from score_jax.model.fused_attention import block_size, fused_attention, resolve_attention
from score_jax.planning.chips import parse_topology
from score_jax.planning.flops import inner_jaxprs
from score_jax.planning.tpu import topology_devices
from tests.model.split_attention import CASES, CONFIG, arrays, as_xla, interpreted

TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
CPU = SimpleNamespace(platform="cpu", device_kind="cpu")


def gpu(capability):
    return SimpleNamespace(platform="gpu", device_kind="a GPU", compute_capability=capability)


@pytest.fixture
def on_cpu(monkeypatch):
    """Kernels that run without their devices, splash attention in blocks of 128 tokens."""
    monkeypatch.setattr(splash_attention, "make_splash_mha_single_device", interpreted)
    monkeypatch.setattr(jax.nn, "dot_product_attention", as_xla)
    monkeypatch.setattr(kernels, "BLOCKS", (128,))


def dense(config, query, key, value, window, segments):
    """Heads repeated, all pairs of tokens, a softmax in float32."""
    groups, length = config.heads // config.kv_heads, query.shape[1]
    key, value = (jnp.repeat(x, groups, axis=1) for x in (key, value))  # B N T H
    scores = jnp.einsum("btnh,bnsh->bnts", query, key) * (config.query_scale or 8**-0.5)
    if config.attention_cap:
        scores = config.attention_cap * jnp.tanh(scores / config.attention_cap)
    ones = np.ones((length, length), bool)
    seen = np.tril(ones) & ~np.tril(ones, -window)
    seen = jnp.broadcast_to(seen, (len(query), length, length))
    if segments is not None:
        seen = seen & (segments[:, None, :] == segments[:, :, None])
    odds = jnp.exp(scores) * seen[:, None]
    return jnp.einsum("bnts,bnsh->btnh", odds / odds.sum(-1, keepdims=True), value)


def with_gradients(attend, gradient, *inputs):
    mixed, back = jax.vjp(attend, *inputs)
    return [mixed, *back(gradient)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["splash", "cudnn"])
def test_a_kernel_computes_the_dense_softmax_and_its_gradient(kind, case, on_cpu):
    fields, segments, length = CASES[case]
    if kind == "cudnn":
        fields = {name: value for name, value in fields.items() if name != "attention_cap"}
    config = dataclasses.replace(CONFIG, attention=kind, dtype="float32", **fields)
    *inputs, gradient = arrays(config, length)
    window = config.window or UNLIMITED
    attend = partial(fused_attention, config, window=jnp.asarray(window), segments=segments)
    found = jax.jit(partial(with_gradients, attend))(gradient, *inputs)
    expected = partial(dense, config, window=window, segments=segments)
    for a, b in zip(found, with_gradients(expected, gradient, *inputs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("kind", ["splash", "cudnn"])
def test_each_layer_runs_the_kernel_of_its_own_window(kind, on_cpu):
    config = dataclasses.replace(CONFIG, attention=kind, window=9, local_layers=(True, False))
    *inputs, _ = arrays(dataclasses.replace(config, dtype="float32"), 150)
    attend = jax.jit(partial(fused_attention, config, segments=None))
    for window in (9, UNLIMITED):
        found = attend(*inputs, window=jnp.asarray(window))
        np.testing.assert_allclose(found, dense(config, *inputs, window, None), atol=2e-5)


def test_a_window_as_long_as_the_row_needs_one_kernel_only():
    config = dataclasses.replace(CONFIG, attention="splash", local_layers=(True, False))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays(config, 150)[:3]]

    def kernels_of(window):
        attend = partial(fused_attention, dataclasses.replace(config, window=window))
        jaxpr = jax.make_jaxpr(lambda *x: attend(*x, jnp.asarray(window), None))(*shapes).jaxpr
        return len(equations(jaxpr, "pallas_call"))

    assert [kernels_of(149), kernels_of(150)] == [2, 1]


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_decoder_of_mixed_layers_agrees_with_the_plain_one(remat, on_cpu):
    """Gradients in float32, of packed dialogues with positions from 0 and all else a model has."""
    tokens = jnp.arange(200).reshape(2, 100) % 9
    segments = jnp.array([[0] * 40 + [1] * 60, [0] * 75 + [1] * 25])
    positions = jnp.arange(100) - jnp.where(segments == 1, jnp.array([[40], [75]]), 0)
    config = dataclasses.replace(
        CONFIG,
        dtype="float32",
        window=30,
        local_layers=(True, False),
        attention_cap=5.0,
        remat=remat,
    )
    params = nn.unbox(Decoder(config).init(jax.random.key(0), tokens, positions))

    def loss(config, params):
        hidden = Decoder(config).apply(params, tokens, positions, segments)
        return jnp.mean(hidden.ravel() * jnp.sin(jnp.arange(hidden.size)))

    def gradient(kind):
        given = dataclasses.replace(config, attention=kind)
        found = jax.jit(jax.grad(partial(loss, given)))(params)
        return jnp.concatenate([x.ravel() for x in jax.tree.leaves(found)])

    found, plain = gradient("splash"), gradient("plain")
    assert jnp.linalg.norm(found - plain) < 1e-5 * jnp.linalg.norm(plain)


def equations(jaxpr, name):
    """All equations of one primitive, at any depth."""
    found = [one for one in jaxpr.eqns if one.primitive.name == name]
    for one in jaxpr.eqns:
        found += [e for inner in inner_jaxprs(one.params) for e in equations(inner, name)]
    return found


def test_programs_that_ask_for_float32_products_leave_the_kernels_theirs():
    """The TPU compiler refuses a kernel whose bfloat16 products should be exact to float32."""
    config = dataclasses.replace(CONFIG, attention="splash")
    *inputs, gradient = arrays(config, 150)
    attend = partial(fused_attention, config, window=jnp.asarray(UNLIMITED), segments=None)
    with jax.default_matmul_precision("highest"):
        jaxpr = jax.make_jaxpr(partial(with_gradients, attend))(gradient, *inputs).jaxpr
    calls = equations(jaxpr, "pallas_call")
    assert len(calls) == 3  # forward, dq, dk and dv
    for call in calls:
        products = equations(call.params["jaxpr"], "dot_general")
        asked = {str(one.params["precision"]) for one in products}
        assert products and not any("HIGHEST" in precision for precision in asked)


def test_eight_devices_share_rows_and_heads(tmp_path):
    """With training's and sampling's axes; a batch that does not divide is computed whole."""
    xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    subprocess.run(
        [sys.executable, "-m", "tests.model.split_attention", str(tmp_path / "found.json")],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": xla, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
    found = json.loads((tmp_path / "found.json").read_text())
    shapes = {  # rows over 4 devices and heads over 2, and the other way round
        "splash, training": [1, 4, 100, 8],
        "cudnn, training": [1, 100, 4, 8],
        "cudnn, sampling": [2, 100, 2, 8],
        "cudnn, training of three rows": [3, 100, 4, 8],
    }
    assert {name: shape for name, (_, shape) in found.items()} == shapes
    assert max(error for error, _ in found.values()) < 2e-5


@pytest.mark.parametrize(
    ("length", "block"),
    [
        (1, 128),
        (12, 128),
        (129, 256),
        (512, 512),
        (513, 384),
        (1536, 512),
        (2080, 384),
        (1600, 256),
    ],
)
def test_blocks_pad_a_row_least(length, block):
    assert block_size(length) == block


@pytest.mark.parametrize(
    ("fields", "device", "kind"),
    [
        ({}, CPU, "plain"),
        ({}, TPU, "splash"),
        ({"attention_cap": 50.0}, TPU, "splash"),
        ({"dtype": "float32"}, TPU, "plain"),
        ({"attention": "plain"}, TPU, "plain"),
        ({}, gpu("8.0"), "cudnn"),
        ({}, gpu("7.5"), "plain"),
        ({}, gpu("gfx942"), "plain"),
        ({"dtype": "float32"}, gpu("9.0"), "plain"),
        ({"attention_cap": 50.0}, gpu("9.0"), "plain"),
        ({"head_dim": 12}, gpu("9.0"), "plain"),
        ({"head_dim": 256}, gpu("8.9"), "plain"),
        ({"head_dim": 256}, gpu("10.0"), "cudnn"),
    ],
)
def test_auto_takes_what_the_devices_have_for_the_model(fields, device, kind):
    assert resolve_attention(dataclasses.replace(CONFIG, **fields), device).attention == kind


@pytest.mark.parametrize(
    ("fields", "device", "told"),
    [
        ({"attention": "splash"}, CPU, "'splash', but the devices are of the platform 'cpu'"),
        ({"attention": "cudnn"}, TPU, "'cudnn', but the devices are no NVIDIA GPUs"),
        (
            {"attention": "splash", "dtype": "float32"},
            TPU,
            "'splash', but compute.dtype is 'float32'",
        ),
        (
            {"attention": "cudnn", "attention_cap": 50.0},
            gpu("9.0"),
            "'cudnn', but model.attention_cap is 50.0",
        ),
        ({"attention": "cudnn", "head_dim": 12}, gpu("9.0"), "'cudnn', but model.head_dim is 12"),
    ],
)
def test_a_kernel_that_cannot_serve_is_refused(fields, device, told):
    with pytest.raises(ValueError, match=f"^model.attention is {told}.*; set 'auto' or 'plain'$"):
        resolve_attention(dataclasses.replace(CONFIG, **fields), device)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'score_jax[tpu]'"
)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_the_tpu_compiler_takes_the_kernels_of_mixed_layers(head_dim):
    """Under the precision that programs set, with segments, over rows and heads of a mesh.

    A [row, head, token, token] array of scores would take 128 MiB on each chip.
    """
    devices = topology_devices(parse_topology("v5e:4x4"))
    assert resolve_attention(CONFIG, devices[0]).attention == "splash"
    config = dataclasses.replace(
        CONFIG, heads=16, kv_heads=4, head_dim=head_dim, attention="splash", attention_cap=50.0,
        window=1024, local_layers=(True, False),
    )  # fmt: skip
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=8, tensor=2), devices)

    def run(window, segments, gradient, *inputs):
        attend = partial(fused_attention, config, window=window, segments=segments)
        return with_gradients(attend, gradient, *inputs)

    with (
        jax.set_mesh(mesh),
        nn.logical_axis_rules(sharding.TRAIN_RULES),
        jax.default_matmul_precision("highest"),
    ):
        rows, heads = nn.logical_to_mesh_axes(("batch", "kv_heads"))
        specs = [P(rows, None, heads), P(rows, heads), P(rows, heads), P(rows, None, heads)]
        *inputs, gradient = (
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
            for x, spec in zip(jax.eval_shape(partial(arrays, config, 2080, 8)), specs, strict=True)
        )
        window = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, P()))
        segments = jax.ShapeDtypeStruct((8, 2080), jnp.int32, sharding=NamedSharding(mesh, P(rows)))
        compiled = jax.jit(run).lower(window, segments, gradient, *inputs).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert all(f"splash_mha_{part}_segmented" in text for part in ("fwd", "dq", "dkv"))
    assert "all-gather" not in text
    assert memory.temp_size_in_bytes < 100 << 20


@pytest.mark.gpu
@pytest.mark.parametrize("case", [name for name in CASES if "cap" not in name])
def test_cudnn_itself_computes_the_dense_softmax(case):
    """In bfloat16, to its rounding; it has no cap, and is not taken for models that have one."""
    fields, segments, length = CASES[case]
    fields = {name: value for name, value in fields.items() if name != "attention_cap"}
    config = dataclasses.replace(CONFIG, attention="cudnn", **fields)
    *inputs, gradient = arrays(config, length)
    window = config.window or UNLIMITED
    attend = partial(fused_attention, config, window=jnp.asarray(window), segments=segments)
    found = jax.jit(partial(with_gradients, attend))(gradient, *inputs)
    expected = partial(dense, config, window=window, segments=segments)
    exact = [x.astype(jnp.float32) for x in (gradient, *inputs)]
    with jax.default_matmul_precision("highest"):
        for a, b in zip(found, with_gradients(expected, *exact), strict=True):
            np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * jnp.abs(b).max())


@pytest.mark.tpu
@pytest.mark.parametrize("case", CASES)
def test_splash_attention_itself_computes_the_dense_softmax(case):
    """In bfloat16, to its rounding, under the precision that programs set."""
    fields, segments, length = CASES[case]
    config = dataclasses.replace(CONFIG, attention="splash", **fields)
    *inputs, gradient = arrays(config, length)
    window = config.window or UNLIMITED
    attend = partial(fused_attention, config, window=jnp.asarray(window), segments=segments)
    expected = partial(dense, config, window=window, segments=segments)
    exact = [x.astype(jnp.float32) for x in (gradient, *inputs)]
    with jax.default_matmul_precision("highest"):
        found = jax.jit(partial(with_gradients, attend))(gradient, *inputs)
        for a, b in zip(found, with_gradients(expected, *exact), strict=True):
            np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * jnp.abs(b).max())
