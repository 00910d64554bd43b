"""Loads ModelConfig, tokenizer and chat format of the base model that a config names."""

from score_jax.data import procedural
from score_jax.model.config import ModelConfig
from score_jax.model.weights import embedded, load
from score_jax.model.weights.stops import load_stops
from score_jax.stages.settings import Settings
from score_jax.tasks import registry
from score_jax.text import tokenizer as tokenizers
from score_jax.text.chat import Chat, get_format

# Values of weights.source and tokenizer.source that name no file or folder; "" is the
# tokenizer in the folder of the weights.
SOURCES_WITHOUT_FILES = ("", "embedded", "random", "stand_in", "trained")


def model_config(settings: Settings) -> ModelConfig:
    """ModelConfig from config.model, else from the weights, with config.compute applied."""
    return settings.compute.apply_to(settings.model or model_config_from_weights(settings))


def model_config_from_weights(settings: Settings) -> ModelConfig:
    """ModelConfig as stored with the weights (config.json, GGUF header).

    Raises:
      ValueError: weights.source is 'random', which stores none.
    """
    source = settings.weights.source
    if source == "embedded":
        return embedded.model_config(settings.task)
    if source == "random":
        raise ValueError("config.model is None with weights.source 'random'; set config.model")
    return load.model_config(source)


def load_chat(settings: Settings) -> Chat:
    """Tokenizer, chat format and stop tokens of a stage."""
    source = settings.tokenizer.source
    chat = get_format(settings.tokenizer.chat)
    if source == "embedded":
        tokenizer = embedded.tokenizer(settings.task)
    elif source == "stand_in":
        tokenizer = tokenizers.StandInTokenizer()
    elif source == "trained":
        made = procedural.TASKS.get(settings.task, procedural.TASKS[procedural.USUAL])
        tokenizer = tokenizers.train_sentencepiece(
            made.sample_texts(registry.get(settings.task).instruction),
            vocab_size=made.vocabulary,
            markers=chat.markers,
            words=made.words,
        )
    else:
        tokenizer = load.load_tokenizer(source or settings.weights.source)
    return Chat(tokenizer, chat, load_more_stops(settings))


def load_more_stops(settings: Settings) -> tuple[int, ...]:
    """Stop token ids from the weights' files, else from the tokenizer's; () where none has any."""
    for source in (settings.weights.source, settings.tokenizer.source):
        if source not in SOURCES_WITHOUT_FILES and (stops := load_stops(source)):
            return stops
    return ()
