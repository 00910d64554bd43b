"""Eight fake devices give the one-device result, with everything really split."""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.distributed import processes, sharding
from score_jax.distributed.sharding import MeshConfig
from score_jax.model.decoder import Decoder
from score_jax.text.tokenizer import train_sentencepiece
from tests.eight_devices import ESTIMATES, MESHES
from tests.tiny import MODEL


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Arrays and facts of one step, on one device and on two meshes of 2 x 2 x 2."""
    folder = tmp_path_factory.mktemp("sharded")
    texts = ["7x+95=628", "There might be an error. Please correct it.", "0123456789=:*+-"]
    markers = ["<user>", "<policy>", "<stop>"]
    train_sentencepiece(texts, vocab_size=60, markers=markers).save(folder)
    out = folder / "out.npz"
    xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    subprocess.run(
        [sys.executable, "-m", "tests.eight_devices", str(folder), str(out)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": xla, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
    arrays = dict(np.load(out))
    facts = json.loads(out.with_suffix(".json").read_text())
    sides = {
        side: {name.removeprefix(side): x for name, x in arrays.items() if name.startswith(side)}
        for side in ("one", *MESHES)
    }
    assert all(sides[side].keys() == sides["one"].keys() for side in MESHES)
    return sides, facts


def pairs(runs, part):
    sides, one = runs[0], runs[0]["one"]
    found = [name for name in one if name.startswith(f"['{part}']")]
    # Each shard packs its own rows, and asks less often whether all have ended.
    found = [name for name in found if "padding" not in name and "computed" not in name]
    assert found
    return [
        (f"{side}{name}", sides["one"][name], sides[side][name])
        for name in found
        for side in MESHES
    ]


@pytest.mark.slow
def test_eight_devices_sample_the_same_dialogues(runs):
    for name, one, many in pairs(runs, "episodes"):
        np.testing.assert_allclose(many, one, atol=1e-5, err_msg=name)
    tokens = runs[0]["one"]["['episodes'].tokens"]
    assert len(np.unique(tokens, axis=0)) == 16


@pytest.mark.slow
def test_eight_devices_score_alike(runs):
    for name, one, many in pairs(runs, "hidden"):
        np.testing.assert_allclose(many, one, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_eight_devices_update_alike(runs):
    """Adam's first step is lr * sign(g): params of tiny gradients are held by the norm."""
    for name, one, many in pairs(runs, "metrics"):
        np.testing.assert_allclose(many, one, atol=1e-5, rtol=1e-5, err_msg=name)
    for name, one, many in pairs(runs, "params"):
        np.testing.assert_allclose(many, one, atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kl", ESTIMATES)
def test_eight_devices_learn_alike_with_every_estimate_of_kl(runs, kl):
    """Adam's moments are multiples of the gradient and of its square."""
    for part in ("metrics", "moments"):
        for name, one, many in pairs(runs, f"{part}_{kl}"):
            np.testing.assert_allclose(many, one, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_parameters_and_moments_are_split_before_and_after(runs):
    many, swung = runs[1]["many"], runs[1]["swung"]
    whole = {name for name, share in many["shares"]["params"].items() if share == 1.0}
    assert not whole, f"whole on every device: {whole}"
    assert set(swung["shares"]["params"].values()) == {0.25}  # scales, too: fsdp x sampling_tensor
    matrices = [s for n, s in many["shares"]["params"].items() if "scale" not in n]
    assert matrices == [0.25] * len(matrices)  # over fsdp and tensor
    moments = [s for n, s in many["shares"]["opt_state"].items() if ".mu" in n or ".nu" in n]
    assert len(moments) == 2 * len(many["shares"]["params"]) and max(moments) == 0.5
    assert many["after"] == many["shares"]["params"]
    assert (
        many["row_shards"] == 4 and swung["row_shards"] == 8 and runs[1]["one"]["row_shards"] == 1
    )


@pytest.mark.slow
@pytest.mark.parametrize("side", ["one", *MESHES])
def test_the_state_is_donated_and_the_reference_is_not(runs, side):
    assert runs[1][side]["state_donated"]
    assert runs[1][side]["reference_kept"]


def test_mesh_shape_takes_what_is_left():
    assert MeshConfig().shape(8) == (1, 8, 1, 1, 1)
    assert MeshConfig(fsdp=2, tensor=2).shape(8) == (1, 2, 2, 1, 2)
    assert MeshConfig(data=4, fsdp=2).shape(8) == (1, 4, 2, 1, 1)
    assert MeshConfig(slices=2, sampling_tensor=4).shape(8) == (2, 1, 1, 4, 1)
    assert MeshConfig(fsdp=4).shape(16, slices=2) == (2, 2, 4, 1, 1)
    assert MeshConfig(fsdp=-1).shape(8) == (1, 1, 8, 1, 1)
    assert MeshConfig(fsdp=-1).shape(1) == (1, 1, 1, 1, 1)
    assert MeshConfig(data=2, fsdp=-1, tensor=2).shape(8) == (1, 2, 2, 1, 2)


@pytest.mark.parametrize(
    "fields",
    [{"fsdp": 3}, {"data": 4}, {"tensor": 16}, {"sampling_tensor": 3}],
    ids=str,
)
def test_a_mesh_that_does_not_fit_is_refused(fields):
    with pytest.raises(ValueError, match=r"mesh is slices=.* must be the number of devices, 8"):
        MeshConfig(**fields).shape(8)


@pytest.mark.parametrize("field", ["slices", "data", "fsdp", "sampling_tensor", "tensor"])
@pytest.mark.parametrize("value", [0, -2, 1.5, True])
def test_an_axis_without_devices_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"mesh.{field} is {value}; set (at least 1|a whole)"):
        MeshConfig(**{field: value})


def test_slices_other_than_the_devices_own_are_refused():
    with pytest.raises(ValueError, match=r"mesh.slices is 1; the devices form 2 slices"):
        MeshConfig(slices=1).shape(8, slices=2)


def abstract_mesh(**fields):
    """Shapes of a mesh without its devices."""
    return jax.sharding.AbstractMesh(MeshConfig(**fields).shape(8), sharding.MESH_AXES)


def test_a_parameter_without_axes_is_an_error():
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    tree = {"layer": {"odd": jax.ShapeDtypeStruct((4, 4), jnp.float32)}}
    with pytest.raises(ValueError, match=r"\['layer'\]\['odd'\] of shape \(4, 4\) has no logical"):
        sharding.parameter_shardings(tree, mesh)


def test_a_size_that_does_not_divide_is_an_error():
    leaf = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((6, 3), jnp.float32), ("embed", "mlp"))
    with pytest.raises(ValueError, match=r"'mlp' of parameter \['w'\] into 2 parts, .* size is 3"):
        sharding.parameter_shardings({"w": leaf}, abstract_mesh(fsdp=2, tensor=2))


def test_every_parameter_of_the_decoder_has_axes_of_the_table():
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    boxed = jax.eval_shape(Decoder(MODEL).init, jax.random.key(0), tokens, tokens)["params"]
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    known = {name for name, _ in sharding.TRAIN_RULES}
    assert known == {name for name, _ in sharding.SAMPLE_RULES}
    for leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert set(leaf.names) <= known
        assert len(leaf.names) == leaf.value.ndim


def test_rows_survive_the_way_to_the_devices_and_back():
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    rows = {"a": np.arange(12).reshape(6, 2), "b": np.arange(6.0, dtype=np.float32)}
    back = sharding.local_rows(sharding.rows_to_global(mesh, rows))
    for name in rows:
        np.testing.assert_array_equal(back[name], rows[name])


def test_one_host_agrees_with_itself():
    assert processes.any_process(True) is True and processes.any_process(False) is False
