"""The works as torch and transformers do them.

A rollout is a call of `generate` per turn: the rows of a problem are rows of the batch, and the
second turn's call encodes prompt, first turn and instruction again. A policy step is a forward
and a backward pass per microbatch, the loss taken at the completion's positions alone, k2 KL to
given reference log-probabilities, and AdamW's fused step.
"""

from typing import Any

import numpy as np
import torch
from protocol import Run, serve
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
)

STOP, PAD, FIRST_WORD = 1, 0, 256
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load(work: dict[str, Any], dtype: torch.dtype) -> LlamaForCausalLM:
    """Random weights of the work's shape: Llama's architecture."""
    shape = work["model"]
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["width"],
        intermediate_size=shape["mlp_dim"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=PAD,
        eos_token_id=STOP,
        pad_token_id=PAD,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(DEVICE, dtype)


class StopSchedule(LogitsProcessor):
    """Ends each row at a length of its own, and nowhere else."""

    def __init__(self, width: int, lengths: np.ndarray):
        self.width, self.lengths = width, torch.as_tensor(lengths, device=DEVICE)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores without the stop token, or with no other."""
        due = input_ids.shape[1] - self.width + 1 >= self.lengths
        scores[:, STOP] = -torch.inf
        scores[due] = -torch.inf
        scores[due, STOP] = 0.0
        return scores


def left_padded(lines: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Token ids and mask of rows that end together."""
    width = max(map(len, lines))
    tokens = np.full((len(lines), width), PAD, np.int64)
    mask = np.zeros((len(lines), width), np.int64)
    for row, line in enumerate(lines):
        tokens[row, width - len(line) :], mask[row, width - len(line) :] = line, 1
    return {
        "input_ids": torch.as_tensor(tokens, device=DEVICE),
        "attention_mask": torch.as_tensor(mask, device=DEVICE),
    }


def rollout(work: dict[str, Any], model: LlamaForCausalLM) -> Run:
    """A call of `generate` per turn."""
    model.eval()
    rng, words = np.random.default_rng(0), (FIRST_WORD, work["model"]["vocab_size"])
    problems = rng.integers(*words, (work["problems"], work["prompt"]))
    instruction = rng.integers(*words, work["instruction"])
    lengths = np.asarray(work["lengths"])

    @torch.inference_mode()
    def run() -> dict[str, float]:
        lines, tokens = list(np.repeat(problems, work["group"], axis=0)), 0
        for turn, limit in enumerate(work["limits"]):
            lines = lines if turn == 0 else [np.append(line, instruction) for line in lines]
            inputs = left_padded(lines)
            width = inputs["input_ids"].shape[1]
            drawn = model.generate(
                **inputs,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                max_new_tokens=limit,
                logits_processor=LogitsProcessorList([StopSchedule(width, lengths[:, turn])]),
            )[:, width:]
            drawn = drawn.cpu().numpy()
            lines = [
                np.append(line, own[:size])
                for line, own, size in zip(lines, drawn, lengths[:, turn], strict=True)
            ]
            tokens += sum(int(np.argmax(own == STOP)) + 1 for own in drawn)
        assert tokens == lengths.sum(), f"{tokens} tokens drawn, not {lengths.sum()}"
        return {"tokens": float(tokens)}

    return run


def dialogues(work: dict[str, Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random dialogues, and where the policy's tokens stand in each."""
    rng, lines, masks = np.random.default_rng(0), [], []
    for own in work["lengths"]:
        mask = [False] * work["prompt"]
        for turn, drawn in enumerate(own):
            mask += [False] * (work["instruction"] if turn else 0) + [True] * drawn
        masks.append(np.array(mask))
        lines.append(rng.integers(FIRST_WORD, work["model"]["vocab_size"], len(mask)))
    return lines, masks


def microbatches(work: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and mask of each microbatch, padded to its longest row."""
    lines, masks = dialogues(work)
    found = []
    for start in range(0, len(lines), work["microbatch"]):
        part = slice(start, start + work["microbatch"])
        width = max(map(len, lines[part]))
        tokens = [np.pad(line, (0, width - len(line))) for line in lines[part]]
        mask = [np.pad(own, (0, width - len(own))) for own in masks[part]]
        found.append((torch.as_tensor(np.array(tokens)), torch.as_tensor(np.array(mask))))
    return [(tokens.to(DEVICE), mask.to(DEVICE)) for tokens, mask in found]


def token_logprobs(model: LlamaForCausalLM, tokens: torch.Tensor, prompt: int) -> torch.Tensor:
    """Log-probabilities of all tokens behind the prompt; padding on the right needs no mask."""
    kept = tokens.shape[1] - prompt + 1
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=kept).logits[:, :-1].float()
    chosen = logits.gather(-1, tokens[:, prompt:, None])[..., 0]
    return chosen - logits.logsumexp(-1)


def learn(work: dict[str, Any], model: LlamaForCausalLM) -> Run:
    """Scores of dialogues, or a policy step on them."""
    parts, prompt = microbatches(work), work["prompt"]
    whole = float(sum(map(len, dialogues(work)[0])))
    low = torch.autocast(DEVICE, torch.bfloat16, enabled=work["dtype"] == "bfloat16")

    def score() -> dict[str, float]:
        with torch.no_grad(), low:
            found = [token_logprobs(model, tokens, prompt) for tokens, _ in parts]
        assert all(bool(one.isfinite().all()) for one in found)
        return {"tokens": whole}

    if work["kind"] == "score":
        return score
    with torch.no_grad(), low:
        reference = [token_logprobs(model, tokens, prompt) for tokens, _ in parts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-6, weight_decay=0.0, fused=True)
    total = sum(int(mask.sum()) for _, mask in parts)

    def update() -> dict[str, float]:
        for (tokens, mask), ref in zip(parts, reference, strict=True):
            with low:
                logprobs = token_logprobs(model, tokens, prompt)
            advantage = torch.linspace(-1, 1, len(tokens), device=DEVICE)[:, None]
            loss = -advantage * logprobs + 0.01 * 0.5 * (logprobs - ref).square()
            ((loss * mask[:, prompt:]).sum() / total).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert bool(norm.isfinite()), "the gradient is not finite"
        return {"tokens": whole}

    return update


def prepare(work: dict[str, Any]) -> Run:
    """The work, warmed up with turns of two tokens: nothing is compiled."""
    rolls = work["kind"] == "rollout"
    model = load(work, getattr(torch, work["dtype"]) if rolls else torch.float32)
    make = rollout if rolls else learn
    few = [[2 for _ in own] for own in work["lengths"]]
    make({**work, "lengths": few}, model)()
    return make(work, model)


if __name__ == "__main__":
    serve(prepare)
