"""Stages that train an adapter: the right gradient, small checkpoints, a whole model out."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.model.lora import LoraConfig, attach, init_lora, merge
from score_jax.model.weights.load import load_params
from score_jax.rl.learner import LearnerConfig
from score_jax.stages.build import build, load_reference
from score_jax.stages.export import repository
from score_jax.stages.handoff import open_checkpoints
from score_jax.text import hub
from tests.rl.test_learner import DECODER, STAGE_TWO, assert_close, episodes, naive_loss, program
from tests.short_answers import TASK
from tests.stage_configs import stages, train
from tests.tiny import MODEL, random_params
from tests.tiny_stages import lines

LORA = LoraConfig(rank=2, alpha=3.0)
FIELDS = {"lora__rank": 2, "evaluation__problems": 4}


def test_the_adapters_gradient_is_that_of_the_merged_model():
    """The plain formula on base + scale * a @ b, by automatic differentiation through it."""
    base = random_params(MODEL, seed=1)
    tokens = jnp.zeros((1, 1), jnp.int32)
    boxed = jax.eval_shape(DECODER.init, jax.random.key(0), tokens, tokens)["params"]
    fresh = nn.unbox(init_lora(jax.random.key(2), boxed, LORA))
    adapter = jax.tree.map(lambda x: 0.2 * jax.random.normal(jax.random.key(3), x.shape), fresh)
    learn = program(
        STAGE_TWO,
        LearnerConfig(logits_chunk=8, microbatches=2),
        1.0,
        DECODER,
        lambda adapter, base: attach(base, adapter, LORA),
    )
    state, metrics = learn(adapter, base, episodes())

    @jax.jit
    @jax.value_and_grad
    def naive(adapter, rows):
        return naive_loss(merge(base, adapter, LORA), rows, STAGE_TWO)

    loss, gradient = naive(adapter, episodes())
    assert metrics["loss"] == pytest.approx(float(loss), abs=1e-5)
    taken = jax.tree.map(lambda old, new: old - new, adapter, state.params)
    assert_close(taken, gradient)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-4


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, cache):
    """Both stages with an adapter of rank 2."""
    workdir = tmp_path_factory.mktemp("adapted")
    train(workdir, "stage2", steps=4, **FIELDS)
    return workdir


def trained(workdir, name):
    stage = stages(name, **FIELDS)[-1]
    programs = build(stage.settings)
    with open_checkpoints(stage.settings, workdir / name) as checkpoints:
        return programs, checkpoints.restore_params(checkpoints.best(), programs.abstract_state())


def test_checkpoints_hold_the_adapter_alone(adapted):
    for name in ("stage1", "stage2"):
        programs, adapter = trained(adapted, name)
        halves = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(adapter)}
        assert halves == {"a", "b"}
        files = (adapted / name / "checkpoints").rglob("_METADATA")
        stored = [json.loads(path.read_text())["tree_metadata"] for path in files]
        assert stored and not any("embedding" in leaf for tree in stored for leaf in tree)
        whole = jax.eval_shape(programs.init_params.jitted, jax.random.key(0))
        assert jax.tree.structure(adapter) != jax.tree.structure(whole)


def test_stage_two_begins_with_the_adapter_of_stage_one(adapted):
    """The reference is the base without it: KL is 0 at first in Stage I, above 0 in Stage II."""
    one, two = (lines(adapted / name / "metrics.jsonl") for name in ("stage1", "stage2"))
    for turn in (1, 2):
        assert one[0][f"kl/turn{turn}"] == pytest.approx(0, abs=1e-6)
        assert two[0][f"kl/turn{turn}"] > 1e-4
    assert max(row[f"mismatch/max/turn{turn}"] for row in one + two for turn in (1, 2)) < 1e-4


def test_the_policy_is_the_base_with_the_adapter_added(adapted):
    programs, adapter = trained(adapted, "stage2")
    reference = load_reference(programs)
    policy = programs.policy(adapter, reference)
    pair = adapter["blocks"]["mlp"]["gate"]
    scale = programs.settings.lora.alpha / 2
    expected = reference["blocks"]["mlp"]["gate"][0] + scale * (pair["a"][0] @ pair["b"][0])
    np.testing.assert_allclose(policy["blocks"]["mlp"]["gate"][0], expected, atol=1e-6)
    np.testing.assert_array_equal(policy["embedding"], reference["embedding"])


def test_the_adapter_alone_is_exported_for_peft(adapted, tmp_path, capsys, monkeypatch):
    train(tmp_path, "stage2", mode="export", **FIELDS)  # the base model
    assert not (tmp_path / "stage2/adapter").exists()
    sent = []
    monkeypatch.setattr(hub, "upload", lambda folder, name, _: sent.append((folder.name, name)))
    fields = FIELDS | {"export__license": "mit", "export__push": "org/name"}
    train(adapted, "stage2", mode="export", steps=4, **fields)
    shown = capsys.readouterr().out
    assert "exported its adapter" in shown
    assert sent == [("export", "org/name")]  # nobody else has the random base model
    assert "stage2/adapter is not uploaded: it goes with weights.source random" in shown
    for name, library in (("export", "transformers"), ("adapter", "peft")):
        card = (adapted / "stage2" / name / "README.md").read_text()
        assert f"library_name: {library}\nlicense: mit\n" in card
        assert TASK.instruction in card and "@t2" in card
    programs, adapter = trained(adapted, "stage2")
    found = load_params(
        str(tmp_path / "stage2/export"),
        programs.decoder.config,
        adapter=str(adapted / "stage2/adapter"),
    )
    policy = programs.policy(adapter, load_reference(programs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, policy)


def test_an_adapter_beside_a_hubs_model_goes_to_a_repository_of_its_own():
    found = {}
    for source in ("hub:org/base", "/models/base"):
        settings = stages("stage1", weights__source=source, export__push="me/it")[-1].settings
        found[source] = [repository(Path(name), settings) for name in ("export", "adapter")]
    assert found == {
        "hub:org/base": ["me/it", "me/it-adapter"],
        "/models/base": ["me/it", ""],
    }


def test_the_merged_model_is_exported_and_answers(adapted, capsys):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    train(adapted, "stage2", mode="export", steps=4, **FIELDS)
    assert "exported stage2 at step" in capsys.readouterr().out
    folder = adapted / "stage2/export"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    programs, adapter = trained(adapted, "stage2")
    policy = programs.policy(adapter, load_reference(programs))
    tokens = np.array([[5, 9, 3, 11, 4]])
    positions = np.arange(5)[None]

    def run(decoder):
        return decoder.logits(decoder(tokens, positions))

    ours = programs.decoder.apply({"params": policy}, method=run)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    train(adapted, "stage2", mode="ask", steps=4, prompt="3*x+1=10", **FIELDS)
    shown = capsys.readouterr().out
    assert "attempt 1" in shown and "attempt 2" in shown and TASK.instruction in shown


def test_stages_hand_on_what_they_train():
    with pytest.raises(ValueError, match=r"lora.rank is 2, but its parent 'stage1' has 0"):
        stages("stage2", lora__rank=2, shared=False)
