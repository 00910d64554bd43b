"""Rollouts as google-tunix's own sampler draws them: a call per turn, prompts encoded again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from protocol import Run, serve
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3.model import Llama3, ModelConfig

STOP, PAD, FIRST_WORD = 1, 0, 256


class Numbers:
    """A tokenizer whose texts are token ids, written out."""

    def encode(self, text: str) -> list[int]:
        """The ids."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """Nothing: no text is read."""
        return ""

    def bos_id(self) -> int:
        """0: no token begins a text."""
        return 0

    def eos_id(self) -> int:
        """The stop token."""
        return STOP

    def pad_id(self) -> int:
        """The padding."""
        return PAD


class Scheduled(Sampler):
    """The sampler, with each row ended at a length of its own."""

    lengths: np.ndarray  # of this turn, by row

    def _sample(self, logits: Any, eos: Any, cache: Any, sampler_state: Any) -> Any:
        """Draws, then puts the stop token where a row's turn ends."""
        state = super()._sample(logits, eos, cache, sampler_state)
        at = state.decoding_step
        due = at - state.num_input_tokens + 1 >= jnp.asarray(self.lengths)
        drawn = jnp.maximum(state.token_buffer[:, at], FIRST_WORD)  # no stop token by chance
        token = jnp.where(due, STOP, drawn)
        return state.replace(
            token_buffer=state.token_buffer.at[:, at].set(token), done=state.done | due
        )


def rollout(work: dict[str, Any]) -> Run:
    """A call of the sampler per turn, each turn's with a cache of its own size."""
    assert work["kind"] == "rollout", "this peer draws only"
    shape = work["model"]
    config = ModelConfig(
        num_layers=shape["layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["width"],
        hidden_dim=shape["mlp_dim"],
        num_heads=shape["heads"],
        head_dim=shape["head_dim"],
        num_kv_heads=shape["kv_heads"],
        rope_theta=100_000,
        norm_eps=1e-5,
        weight_tying=True,
    )
    model = Llama3(config, rngs=nnx.Rngs(0))
    state = jax.tree.map(lambda x: x.astype(work["dtype"]), nnx.state(model))
    nnx.update(model, state)
    rng, words = np.random.default_rng(0), (FIRST_WORD, shape["vocab_size"])
    problems = rng.integers(*words, (work["problems"], work["prompt"]))
    instruction = rng.integers(*words, work["instruction"])
    lengths, limits = np.asarray(work["lengths"]), work["limits"]
    samplers, widths, width = [], [], work["prompt"]
    for turn, limit in enumerate(limits):
        cache = CacheConfig(width + limit, shape["layers"], shape["kv_heads"], shape["head_dim"])
        samplers.append(Scheduled(model, Numbers(), cache))
        samplers[-1].lengths = lengths[:, turn]
        widths.append(width)
        width += limit + work["instruction"]

    def run() -> dict[str, float]:
        lines, tokens = list(np.repeat(problems, work["group"], axis=0)), 0
        for turn, limit in enumerate(limits):
            lines = lines if turn == 0 else [np.append(line, instruction) for line in lines]
            found = samplers[turn](
                [" ".join(map(str, line)) for line in lines],
                max_generation_steps=limit,
                max_prompt_length=widths[turn],
                temperature=1.0,
                top_p=1.0,
                seed=turn,
                eos_tokens=[-1],  # turns end at their lengths alone
            )
            sizes = [int(np.argmax(own == STOP)) + 1 for own in found.tokens]
            lines = [
                np.append(line, own[:size])
                for line, own, size in zip(lines, found.tokens, sizes, strict=True)
            ]
            tokens += sum(sizes)
        assert tokens == lengths.sum(), f"{tokens} tokens drawn, not {lengths.sum()}"
        return {"tokens": float(tokens)}

    run()  # compiles
    return run


if __name__ == "__main__":
    serve(rollout)
