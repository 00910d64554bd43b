"""What the programs ask of TPUs and GPUs, read from what is lowered for them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from score_jax.model.decoder import Decoder
from score_jax.model.layers import adapter_product, product
from score_jax.stages.build import build
from tests.stage_configs import stages
from tests.tiny import GEMMA, MODEL, random_params, rows_of

PLATFORMS = ("tpu", "cuda")
DOT = re.compile(r"stablehlo\.dot_general.*?: \((.*?)\) -> (\S+)")


def dots(text):
    """(line, types of the factors, type of the result) of each product."""
    found = []
    for line in text.splitlines():
        if match := DOT.search(line):
            factors = set(re.findall(r"x(bf16|f32)>", match[1]))
            found.append((line, factors, re.findall(r"x(bf16|f32)>", match[2])[0]))
    return found


def lowered(config, dtype, platform):
    """A gradient through the whole decoder."""
    decoder = Decoder(dataclasses.replace(config, dtype=dtype))
    tokens = jnp.zeros((2, 8), jnp.int32)

    def loss(params):
        positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
        hidden = decoder.apply({"params": params}, tokens, positions)
        return jnp.square(decoder.apply({"params": params}, hidden, method="logits")).sum()

    exported = export.export(jax.jit(jax.grad(loss)), platforms=[platform])
    return exported(random_params(config)).mlir_module()


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("config", [MODEL, GEMMA], ids=["llama", "gemma"])
def test_float32_means_float32(config, platform):
    found = dots(lowered(config, "float32", platform))
    assert len(found) > 20
    for line, factors, result in found:
        assert factors == {"f32"} and result == "f32"
        assert "precision = [HIGHEST, HIGHEST]" in line


@pytest.mark.gpu
@pytest.mark.parametrize("config", [MODEL, GEMMA], ids=["llama", "gemma"])
def test_a_gpus_float32_is_a_cpus(config):
    """Logits and gradients; products in TF32 would be off by some 3e-4. JAX_PLATFORMS=cuda,cpu."""
    decoder = Decoder(dataclasses.replace(config, dtype="float32"))
    tokens = jax.random.randint(jax.random.key(1), (4, 64), 0, config.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(64), (4, 64))

    def logits(params):
        hidden = decoder.apply({"params": params}, tokens, positions)
        return decoder.apply({"params": params}, hidden, method="logits")

    def loss(params):
        return jnp.square(logits(params)).mean()

    run = jax.jit(lambda params: (logits(params), jax.grad(loss)(params)))
    found = {}
    for platform in ("cpu", "gpu"):
        with jax.default_device(jax.devices(platform)[0]):
            found[platform] = jax.tree.leaves(run(random_params(config)))
    for here, there in zip(found["cpu"], found["gpu"], strict=True):
        assert {device.platform for device in there.devices()} == {"gpu"}
        wrong = np.linalg.norm(np.asarray(here) - np.asarray(there))
        assert wrong <= 2e-5 * np.linalg.norm(np.asarray(here))


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("config", [MODEL, GEMMA], ids=["llama", "gemma"])
def test_bfloat16_is_multiplied_at_its_own_price(config, platform):
    """Nothing is asked for at float32's; logits come out as float32."""
    found = dots(lowered(config, "bfloat16", platform))
    assert len(found) > 20
    assert not [line for line, *_ in found if "HIGHEST" in line]
    wide = [line for line, factors, result in found if factors == {"bf16"} and result == "f32"]
    assert len(wide) >= 2  # attention's logits and the vocabulary's


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_outside_the_model_is_float32_too(dtype):
    """The adapter's product, and the optimiser's."""
    fields = {"compute__dtype": dtype, "lora__rank": 2, "optimizer__kind": "muon"}
    programs = build(stages(**fields)[-1].settings)
    base = jax.eval_shape(programs.init_params.jitted, jax.random.key(0))
    adapter = jax.eval_shape(programs.init_adapter.jitted)
    rows = rows_of([([3, 1, 2, 0, 7, 8, 2, 0], [0, 1, 1, 1, 0, 0, 2, 2])] * 8, 2)
    with programs.score.traced():
        scores = jax.eval_shape(programs.score.jitted, base, rows)
        # For a TPU: where a CPU lacks products of bfloat16, its factors are made float32 before.
        merge = programs.merge.jitted.trace(base, adapter).lower(lowering_platforms=("tpu",))
        traced = programs.update.jitted.trace(programs.abstract_state(), base, rows, scores)
        update = traced.lower(lowering_platforms=("tpu",))
    for program in (merge, update):
        found = [line for line, factors, _ in dots(program.as_text()) if factors == {"f32"}]
        assert found and not [line for line in found if "HIGHEST" not in line]


def test_sums_of_bfloat16_products_keep_small_terms():
    """256 and 64 ones: in bfloat16, with steps of 2 above 256, ones would be lost."""
    row = jnp.asarray([[256.0, *[1.0] * 64]], jnp.bfloat16)
    got = product("ij,kj->ik", row, jnp.ones((1, 65), jnp.bfloat16))
    assert got.dtype == jnp.bfloat16 and float(got[0, 0]) == 320.0


def test_an_adapters_product_is_exact():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    got = jax.vmap(adapter_product)(a, b.swapaxes(1, 2))
    np.testing.assert_allclose(got, a @ b.swapaxes(1, 2), rtol=1e-5, atol=1e-6)


def test_a_tokens_gradients_of_all_places_are_summed_in_float32():
    """In bfloat16 a sum of ones ends at 256."""
    decoder = Decoder(dataclasses.replace(MODEL, dtype="bfloat16"))
    tokens = jnp.full((4, 300), 3)

    def total(params):
        return decoder.apply({"params": params}, tokens, method="embed").astype(jnp.float32).sum()

    slope = jax.grad(total)(random_params(MODEL))["embedding"]
    np.testing.assert_array_equal(slope[3], 1200)
    assert not np.delete(slope, 3, axis=0).any()
