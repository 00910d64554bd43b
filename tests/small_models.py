"""Folders of small published models, made in process."""

from score_jax.model.published import by_hub_id
from score_jax.model.weights.export import export
from score_jax.text.chat import FORMATS, Chat
from tests.reduced import narrow
from tests.small_tokenizers import make
from tests.tiny import random_params


def small_qwen(folder):
    """A Hugging Face folder of a random Qwen2.5 with two narrow layers."""
    tokenizer = make("chatml")
    whole = by_hub_id("Qwen/Qwen2.5-1.5B-Instruct")
    config = narrow(whole, tokenizer.vocab_size)
    export(random_params(config), config, Chat(tokenizer, FORMATS["qwen25"]), folder)
    return folder
