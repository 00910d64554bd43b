"""Small tokenizers with the markers of each family, made in process."""

import io
import json

import sentencepiece

from score_jax.text.rebuild import SPLITS
from score_jax.text.tokenizer import JsonTokenizer, SentencePieceTokenizer

MARKERS = {
    "llama3": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ],
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "gemma": ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
}
SPLIT = {"llama3": "llama-bpe", "chatml": "qwen2"}
CORPUS = [
    "user\n\nassistant\n\nsystem\n\nmodel\n\n You are a helpful assistant. Solution: Problem:",
    "What is 37 + 58? The sum of 37 and 58 is 95, so the answer is \\boxed{95}.",
    "There might be an error in the solution above. Please correct it, then rewrite it.",
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<think>\n\n</think>",
    "def add(a, b):\n    return a + b\n\n\nFür Ärger: naïve café, 東京 и Москва.",
] * 4


def byte_level(family: str) -> JsonTokenizer:
    """A byte-level BPE tokenizer that splits text and marks turns as a family does."""
    from tokenizers import Tokenizer, models, trainers

    alphabet = sorted(set(byte_characters().values()))
    seed = {
        "version": "1.0",
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": SPLITS[SPLIT[family]]},
        "decoder": SPLITS["qwen2"][1],
        "added_tokens": [],
        "model": json.loads(Tokenizer(models.BPE()).to_str())["model"],
    }
    engine = Tokenizer.from_str(json.dumps(seed))
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=MARKERS[family],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    engine.train_from_iterator(CORPUS, trainer)
    return JsonTokenizer(engine.to_str())


def byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def gemma() -> SentencePieceTokenizer:
    """A SentencePiece model whose turn markers are ordinary pieces, as Gemma's are."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "\u2581\u2581"],
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        bos_piece="<bos>",
        eos_piece="<eos>",
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())


def make(family: str) -> JsonTokenizer | SentencePieceTokenizer:
    """A small tokenizer of "llama3", "chatml" or "gemma"."""
    return gemma() if family == "gemma" else byte_level(family)
