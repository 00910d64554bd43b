"""Loading into shards, and what a folder that does not fit is told."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from score_jax.model.weights import load
from score_jax.model.weights.names import entries
from score_jax.model.weights.safetensors import SafetensorsFolder
from tests.reference_models import PINNED, fill
from tests.small_tokenizers import make


@pytest.fixture
def folder(tmp_path):
    """A small untied Llama."""
    pinned = json.loads(PINNED.read_text())["llama"]
    (tmp_path / "config.json").write_text(json.dumps(pinned["config"]))
    tensors = {name: fill(name, tuple(shape)) for name, shape in pinned["shapes"].items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def change(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_values_are_those_of_the_file(folder):
    config = load.model_config(str(folder))
    params = load.load_params(str(folder), config)
    tensors = load_file(folder / "model.safetensors")
    for layer in range(config.layers):
        gate = tensors[f"model.layers.{layer}.mlp.gate_proj.weight"]
        np.testing.assert_array_equal(params["blocks"]["mlp"]["gate"][layer], gate.T)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_shards_hold_the_same_values(folder):
    config = load.model_config(str(folder))
    devices = jax.devices()[: 2 if len(jax.devices()) > 1 else 1]
    mesh = jax.make_mesh((len(devices),), ("fsdp",), (AxisType.Auto,), devices=devices)
    axes = {"embedding": ("fsdp",), "query": (None, "fsdp"), "down": (None, None, "fsdp")}

    def place(path, _):
        return NamedSharding(mesh, PartitionSpec(*axes.get(path[-1].key, ())))

    whole = load.load_params(str(folder), config)
    shardings = jax.tree_util.tree_map_with_path(place, whole)
    parts = load.load_params(str(folder), config, shardings)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert jax.tree.map(lambda x: x.sharding, parts) == shardings


def test_a_part_is_read_without_the_rest(folder):
    """A host that holds one layer's quarter of a matrix maps that layer's tensor only."""
    config = load.model_config(str(folder))
    tensors, names = SafetensorsFolder(folder), []

    class Watched:
        shapes = tensors.shapes

        def read(self, name):
            names.append(name)
            return tensors.read(name)

    entry = next(e for e in entries(config) if e.path[-1] == "gate")
    index = (slice(2, 3), slice(0, 12), slice(None))
    block = load.read_part(entry, entry.names, Watched(), index, np.dtype("float32"))
    assert names == ["model.layers.2.mlp.gate_proj.weight"]
    np.testing.assert_array_equal(block[0], tensors.read(names[0]).T[:12])


def test_bfloat16_parameters_on_request(folder):
    config = load.model_config(str(folder))
    params = load.load_params(str(folder), config, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_all_that_does_not_fit_is_listed(folder):
    config = load.model_config(str(folder))

    def spoil(tensors):
        del tensors["model.layers.1.self_attn.q_proj.weight"]
        tensors["model.layers.9.extra.weight"] = np.zeros(3, np.float32)
        tensors["model.norm.weight"] = np.zeros(7, np.float32)

    change(folder, spoil)
    with pytest.raises(ValueError) as caught:
        load.load_params(str(folder), config)
    message = str(caught.value)
    assert "missing: model.layers.1.self_attn.q_proj.weight" in message
    assert "left over: model.layers.9.extra.weight" in message
    assert "misshapen: model.norm.weight (7,), not (48,)" in message


def test_a_long_list_is_cut():
    text = load.shorten([f"t{i}" for i in range(20)])
    assert text.startswith("t0, t1") and text.endswith("t11 and 8 more")


def test_names_of_image_models_and_computed_tensors_are_understood(folder):
    config = load.model_config(str(folder))
    expected = load.load_params(str(folder), config)
    plain = load_file(folder / "model.safetensors")
    renamed = {f"language_model.{name}": value for name, value in plain.items()}
    renamed["vision_tower.patch.weight"] = np.zeros(3, np.float32)
    renamed["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)
    save_file(renamed, folder / "model.safetensors")
    found = load.load_params(str(folder), config)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_folder_without_config_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config.json; point at a complete model folder"):
        load.model_config(str(folder))


def test_a_source_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no such file or folder"):
        load.model_config("/nowhere/at/all")


def test_a_hub_id_needs_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install score_jax\[hf\]"):
        load.locate("hub:org/name")


def test_a_hub_id_becomes_a_folder(monkeypatch, folder):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def fetch(name, allow_patterns):
        asked.append((name, "*.safetensors" in allow_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert load.locate("hub:org/name") == Path(folder)
    assert asked == [("org/name", True)]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch, folder, tmp_path):
    """A client whose cache is laid out as the real one's; the questions it was asked.

    The hub itself is out of a test's reach.
    """
    client = pytest.importorskip("huggingface_hub")
    asked = []
    snapshot = tmp_path / "models--org--name" / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot, ignore=lambda *_: {"models--org--name"})

    def fetch(repo_id, *, allow_patterns, revision=None):
        asked.append((repo_id, revision))
        return str(snapshot)

    monkeypatch.setattr(client, "snapshot_download", fetch)
    return asked


@pytest.mark.parametrize(
    ("source", "question"),
    [
        ("hub:org/name", ("org/name", None)),
        ("hub:org/name@main", ("org/name", "main")),
        ("hub:org/name@v1.5", ("org/name", "v1.5")),
        (f"hub:org/name@{COMMIT}", ("org/name", COMMIT)),
        ("hub:org/name@refs/pr/7", ("org/name", "refs/pr/7")),
        ("hub:name@a@b", ("name", "a@b")),
    ],
)
def test_a_revision_is_asked_for_and_the_commit_is_told(hub, source, question):
    assert load.model_config(source).layers == 4
    assert load.resolve(source) == f"hub:{question[0]}@{COMMIT}"
    assert set(hub) == {question}


def test_a_revision_that_is_empty_is_named(hub):
    with pytest.raises(ValueError, match="'hub:org/name@'; write a branch, tag or commit after"):
        load.locate("hub:org/name@")
    assert not hub


@pytest.mark.parametrize("source", ["embedded", "random", "/models/name@v1", "model.gguf"])
def test_what_is_no_hub_name_stays_as_it_is(hub, source):
    assert load.resolve(source) == source
    assert not hub


@pytest.mark.parametrize("kind", ["LocalEntryNotFoundError", "OfflineModeIsEnabled"])
def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch, kind):
    hub = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")

    def fetch(*_, **__):
        raise getattr(errors, kind)("Got: ConnectError\nCheck your connection.")

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    with pytest.raises(ValueError, match=r"'hub:org/name', which cannot be downloaded") as caught:
        load.model_config("hub:org/name")
    assert "\n" not in str(caught.value)
    assert "ConnectError Check your connection" in str(caught.value)


def test_a_name_that_no_hub_knows_is_one_clear_line():
    """The client refuses it before it asks the network."""
    pytest.importorskip("huggingface_hub")
    with pytest.raises(ValueError, match="'hub:a b/c d', which cannot be downloaded"):
        load.load_tokenizer("hub:a b/c d")


def test_all_of_a_model_comes_from_the_hub(monkeypatch, folder):
    """Config, tokenizer and weights of a hub id are those of the folder that is fetched."""
    hub = pytest.importorskip("huggingface_hub")
    make("chatml").save(folder)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(folder))
    config = load.model_config("hub:org/name")
    assert config == load.model_config(str(folder))
    fetched, local = (load.load_params(s, config) for s in ("hub:org/name", str(folder)))
    jax.tree.map(np.testing.assert_array_equal, fetched, local)
    text = "What is 37 + 58?"
    found = load.load_tokenizer("hub:org/name").encode(text)
    assert found == make("chatml").encode(text)
