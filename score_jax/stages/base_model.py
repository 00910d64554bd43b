"""The base model that a config names: its shape, its tokenizer and its chat format."""

from score_jax.data import equations
from score_jax.model.config import ModelConfig
from score_jax.model.weights import embedded, load
from score_jax.model.weights.stops import load_stops
from score_jax.stages.settings import Settings
from score_jax.tasks import registry
from score_jax.text import tokenizer as tokenizers
from score_jax.text.chat import Chat, get_format

# Sources that are no files; "" is the tokenizer beside the weights.
MADE_HERE = ("", "embedded", "random", "stand_in", "trained")


def model_config(settings: Settings) -> ModelConfig:
    """The model's shape: from config.model, else from the weights' own description."""
    return settings.compute.over(settings.model or described_model(settings))


def described_model(settings: Settings) -> ModelConfig:
    """The model's shape as the weights say."""
    source = settings.weights.source
    if source == "embedded":
        return embedded.model_config(settings.task)
    if source == "random":
        raise ValueError("config.model is None with weights.source 'random'; set config.model")
    return load.model_config(source)


def load_chat(settings: Settings) -> Chat:
    """The tokenizer and the chat format."""
    source = settings.tokenizer.source
    chat = get_format(settings.tokenizer.chat)
    if source == "embedded":
        tokenizer = embedded.tokenizer(settings.task)
    elif source == "stand_in":
        tokenizer = tokenizers.StandInTokenizer()
    elif source == "trained":
        instruction = registry.get(settings.task).instruction
        tokenizer = tokenizers.train_sentencepiece(
            equations.sample_texts(instruction),
            vocab_size=equations.VOCABULARY,
            markers=chat.markers,
            words=equations.WORDS,
        )
    else:
        tokenizer = load.load_tokenizer(source or settings.weights.source)
    return Chat(tokenizer, chat, more_stops(settings))


def more_stops(settings: Settings) -> tuple[int, ...]:
    """What ends a turn by the weights' files, or where those say nothing by the tokenizer's."""
    for source in (settings.weights.source, settings.tokenizer.source):
        if source not in MADE_HERE and (found := load_stops(source)):
            return found
    return ()
