"""What ends a text is read wherever the files beside the weights say it."""

import json

import pytest

from score_jax.model.weights.stops import load_stops
from score_jax.text.chat import FORMATS, Chat
from tests.small_tokenizers import make

FILES = {  # as published models write them, and what they mean
    "one id": ({"generation_config.json": {"eos_token_id": 2}}, (2,)),
    "a list": ({"generation_config.json": {"eos_token_id": [128001, 128008, 128009]}},
               (128001, 128008, 128009)),
    "generation goes first": (
        {"generation_config.json": {"eos_token_id": [1, 106]}, "config.json": {"eos_token_id": 1}},
        (1, 106),
    ),
    "config alone": ({"config.json": {"eos_token_id": 7}}, (7,)),
    "generation says nothing": (
        {"generation_config.json": {"top_k": 64}, "config.json": {"eos_token_id": [7, 3]}}, (7, 3),
    ),
    "null": ({"generation_config.json": {"eos_token_id": None}, "config.json": {}}, ()),
    "image and text": (
        {"config.json": {"model_type": "gemma3", "text_config": {"eos_token_id": 5}}}, (5,),
    ),
    "twice the same": ({"generation_config.json": {"eos_token_id": [4, 4, 9]}}, (4, 9)),
    "id 0": ({"generation_config.json": {"eos_token_id": 0}}, (0,)),
    "nothing there": ({}, ()),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_stop_ids_of_a_folder(case, tmp_path):
    files, expected = FILES[case]
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    assert load_stops(str(tmp_path)) == expected


@pytest.mark.parametrize("value", ["</s>", [1, "2"], 1.5, True, [-1], {"id": 1}, [[1]]])
def test_what_is_no_token_id_is_named(value, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id is .*; set a tok"):
        load_stops(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[1]", "version https://git-lfs.github.com/spec/v1"])
def test_a_file_that_is_no_json_object_is_named(text, tmp_path):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"generation_config.json (is|holds) .*; (fetch|run|a JSON)"
    ):
        load_stops(str(tmp_path))


def test_stop_ids_of_a_gguf_file(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(32)
    writer.add_eom_token_id(33)
    writer.add_pad_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert load_stops(str(path)) == (2, 32, 33)


@pytest.mark.parametrize("value", ["2", True, [2, 3]])
def test_a_stop_of_a_gguf_file_is_an_id(value, tmp_path):
    gguf = pytest.importorskip("gguf")
    path, name = tmp_path / "model.gguf", "tokenizer.ggml.eos_token_id"
    writer = gguf.GGUFWriter(path, "llama")
    add = {str: writer.add_string, bool: writer.add_bool, list: writer.add_array}[type(value)]
    add(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=rf"{name} is .*; convert the model again"):
        load_stops(str(path))


def test_a_chats_own_stop_goes_first_and_stands_once():
    tokenizer = make("chatml")
    end, text_end = (tokenizer.marker(name) for name in ("<|im_end|>", "<|endoftext|>"))
    assert Chat(tokenizer, FORMATS["qwen25"]).stops == (end,)
    assert Chat(tokenizer, FORMATS["qwen25"], (text_end, end)).stops == (end, text_end)
    chat = Chat(tokenizer, FORMATS["qwen25"], (text_end, 300, end))
    assert chat.describe_stops() == (
        f"turns end at <|im_end|> (id {end}); other stop ids in the model's files: {text_end}, 300"
    )
    assert Chat(tokenizer, FORMATS["base_qwen"], (end, text_end)).stops == (text_end, end)
