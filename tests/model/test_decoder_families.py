"""Logits of every family stay at values that transformers gave once; needs no torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from score_jax.model.decoder import Decoder
from score_jax.model.weights.load import load_params, model_config
from tests.reference_models import FAMILIES, PINNED, fill, pinned_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, tmp_path):
    pinned = json.loads(PINNED.read_text())[family]
    (tmp_path / "config.json").write_text(json.dumps(pinned["config"]))
    tensors = {name: fill(name, tuple(shape)) for name, shape in pinned["shapes"].items()}
    save_file(tensors, tmp_path / "model.safetensors")
    config = model_config(str(tmp_path))
    variables = {"params": load_params(str(tmp_path), config)}
    tokens = jnp.asarray(pinned_tokens())

    def run(model):
        return model.logits(model(tokens, jnp.arange(24)[None, :])[:, -1])

    logits = jax.jit(lambda v: Decoder(config).apply(v, method=run))(variables)
    found = np.asarray(logits)[0, : len(pinned["logits"])]
    difference = np.abs(found - pinned["logits"]).max()
    assert difference < 1e-4, (
        f"{family}: logits moved by {difference}; if the small models were changed on purpose, "
        "re-make the values with `python -m tests.reference_models`"
    )
