"""The two kinds of tokenizer behind one interface."""

import pytest

from score_jax.text.tokenizer import (
    JSON_FILE,
    JsonTokenizer,
    SentencePieceTokenizer,
    load,
    train_sentencepiece,
)
from tests.small_tokenizers import CORPUS, byte_level, make

TEXTS = [
    *CORPUS[:5],
    "",
    " ",
    "  two  spaces\t\ttabs\r\n\n\n",
    "1234567890 3.14159 -7",
    "naïve 東京 Москва 🙂 e\u0301",
]


@pytest.mark.parametrize("family", ["llama3", "chatml", "gemma"])
def test_texts_round_trip(family):
    tokenizer = make(family)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("family", ["llama3", "chatml", "gemma"])
def test_a_saved_tokenizer_is_the_same(family, tmp_path):
    tokenizer = make(family)
    tokenizer.save(tmp_path / "new")
    again = load(tmp_path / "new")
    assert type(again) is type(tokenizer)
    assert again.vocab_size == tokenizer.vocab_size
    assert [again.encode(t) for t in TEXTS] == [tokenizer.encode(t) for t in TEXTS]


def test_special_tokens_are_neither_read_nor_shown():
    tokenizer = byte_level("chatml")
    end = tokenizer.marker("<|im_end|>")
    assert end not in tokenizer.encode("a <|im_end|> b")
    assert tokenizer.decode([*tokenizer.encode("7 + 5"), end]) == "7 + 5"


def test_numbers_stay_digit_by_digit_or_by_three_as_the_family_has_it():
    by_one, by_three = byte_level("chatml"), byte_level("llama3")
    assert len(by_one.encode("2023")) == 4
    assert len(by_three.encode("2023")) < 4


def test_image_markers_do_not_count_as_text():
    tokenizer = byte_level("chatml")
    size = tokenizer.vocab_size
    tokenizer.engine.add_special_tokens(["<image_soft_token>"])
    assert JsonTokenizer(tokenizer.engine.to_str()).vocab_size == size


def test_the_json_file_goes_first(tmp_path):
    byte_level("chatml").save(tmp_path)
    train_sentencepiece(CORPUS, vocab_size=200, markers=["<stop>"]).save(tmp_path)
    assert isinstance(load(tmp_path), JsonTokenizer)
    (tmp_path / JSON_FILE).unlink()
    assert isinstance(load(tmp_path), SentencePieceTokenizer)


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds tokenizer.json or tokenizer.model"):
        load(tmp_path)


def test_a_missing_marker_is_named():
    for tokenizer in (byte_level("chatml"), make("gemma")):
        with pytest.raises(ValueError, match="tokenizer has no marker '<nothing>'"):
            tokenizer.marker("<nothing>")


def test_training_is_deterministic():
    first, second = (
        train_sentencepiece(CORPUS, vocab_size=200, markers=["<stop>"]) for _ in range(2)
    )
    assert first.model == second.model
