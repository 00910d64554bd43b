"""Tokenizers with a common interface, and the training of the embedded one.

A tokenizer converts plain text to ids and back. Markers in plain text are not
recognised: "<stop>" in a problem is text, not the end of a turn. `text.chat` looks up
the ids of markers by name and inserts them.
"""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece

from score_jax.text.files import check_fetched, read_json, read_text

SENTENCEPIECE_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
IMAGE_MARKERS = "_soft_token>"  # suffix; text-only Gemma 3 has no embedding rows for them


class Tokenizer(Protocol):
    """The interface of a tokenizer."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without start or stop markers."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; markers are left out."""
        ...

    def marker(self, name: str) -> int:
        """The id of a marker such as "<stop>".

        Raises:
          ValueError: the vocabulary has no such marker.
        """
        ...

    def contents(self) -> bytes:
        """Bytes that identify the tokenizer, for comparison and hashing."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the files that `load` reads."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece model held in memory."""

    def __init__(self, model: bytes):
        """Args: model: the bytes of a `tokenizer.model` file."""
        self.model = model
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self.processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self.processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control pieces are left out."""
        return self.processor.decode([int(i) for i in ids])

    def marker(self, name: str) -> int:
        """The id of a control or user-defined piece."""
        index = self.processor.piece_to_id(name)
        if index == self.processor.unk_id():
            raise ValueError(f"tokenizer has no marker {name!r}; use a chat format of its family")
        return index

    def contents(self) -> bytes:
        """The bytes of the model."""
        return self.model

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.model`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SENTENCEPIECE_FILE).write_bytes(self.model)


class JsonTokenizer:
    """A Hugging Face `tokenizer.json`, run by the tokenizers library."""

    def __init__(self, content: str, path: str = JSON_FILE):
        """Args: content: the file's text; path: its name, for messages.

        Raises:
          ValueError: the tokenizers library is not installed, or can't read the text.
        """
        # Optional dependency of the extra [hf].
        try:
            from tokenizers import Tokenizer as Engine
        except ImportError as error:
            raise ValueError(f"{JSON_FILE} needs the extra: pip install score_jax[hf]") from error
        self.content = content
        try:
            self.engine = Engine.from_buffer(content.encode())
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged, or too new for the installed tokenizers library ({error}); "
                "fetch it again or update the library"
            ) from error
        self.engine.no_truncation()
        self.engine.no_padding()
        self.engine.encode_special_tokens = True  # markers in a text are encoded as text
        ids = self.engine.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(i for name, i in ids.items() if not name.endswith(IMAGE_MARKERS))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self.engine.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        return self.engine.decode([int(i) for i in ids], skip_special_tokens=True)

    def marker(self, name: str) -> int:
        """The id of a token by its name."""
        index = self.engine.token_to_id(name)
        if index is None:
            raise ValueError(f"tokenizer has no marker {name!r}; use a chat format of its family")
        return index

    def contents(self) -> bytes:
        """The file's JSON value in a canonical layout."""
        return json.dumps(json.loads(self.content), sort_keys=True).encode()

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON_FILE).write_text(self.content, encoding="utf-8")


class StandInTokenizer:
    """A tokenizer for planning: correct lengths on average, without a vocabulary.

    Four characters per token, as English text has in the vocabularies of published models.
    """

    CHARACTERS = 4  # per token

    def __init__(self):
        self.vocab_size = 256  # below that of every model; markers get ids on first use
        self.markers: list[str] = []

    def encode(self, text: str) -> list[int]:
        """The expected number of ids, all the same."""
        return [self.vocab_size - 1] * -(-len(text) // self.CHARACTERS)

    def decode(self, ids: Sequence[int]) -> str:
        """One "?" per id."""
        return "?" * len(ids)

    def marker(self, name: str) -> int:
        """A different id for each name."""
        if name not in self.markers:
            self.markers.append(name)
        return self.markers.index(name)

    def contents(self) -> bytes:
        """Empty: all stand-ins are equal."""
        return b""

    def save(self, folder: Path) -> None:
        """Not supported.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            f"tokenizer.source is 'stand_in'; it is for planning and can't be saved in {folder}"
        )


def train_sentencepiece(
    texts: Iterable[str], *, vocab_size: int, markers: Sequence[str], words: Sequence[str] = ()
) -> SentencePieceTokenizer:
    """Trains a small BPE model; deterministic.

    Each digit is a piece, so that arithmetic is digit by digit. Decoding restores the text
    exactly (no normalisation, no dummy prefix).

    Args:
      markers: control pieces, which encoding plain text never yields.
      words: strings that are always one piece.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        control_symbols=list(markers),
        user_defined_symbols=list(words),
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())


def load(folder: Path) -> Tokenizer:
    """Reads the tokenizer of a folder; `tokenizer.json` has priority.

    A folder with both files has the same tokenizer twice, but for some families (Llama 3,
    Qwen) only the JSON file contains the chat markers.

    Raises:
      ValueError: the folder has no known tokenizer file, or a damaged one.
    """
    if (path := folder / JSON_FILE).is_file():
        model = read_json(path).get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        if not isinstance(vocab, dict | list) or not vocab:
            raise ValueError(f"{path} has no model with a vocab; fetch it again")
        return JsonTokenizer(read_text(path), str(path))
    if (path := folder / SENTENCEPIECE_FILE).is_file():
        check_fetched(path)
        try:
            return SentencePieceTokenizer(path.read_bytes())
        except RuntimeError as error:
            raise ValueError(f"{path} is no SentencePiece model; fetch it again") from error
    raise ValueError(
        f"tokenizer.source is {folder}; point it at a folder that holds {JSON_FILE} "
        f"or {SENTENCEPIECE_FILE}"
    )
