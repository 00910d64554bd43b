"""Configs of published models by name, for planning and for weights without a config.

A folder of weights contains a config.json; a preset gives the same config without a
download, as --mode=plan needs it.
"""

from typing import Any

from score_jax.model.config import ModelConfig, RopeScaling

Sizes = tuple[int, int, int, int, int, int]  # L, D, N, K, H, F


def smollm2(sizes: Sizes, **more: Any) -> ModelConfig:
    """SmolLM2: Llama's architecture, tied embeddings."""
    fields = {"vocab_size": 49_152, "norm_eps": 1e-5, "rope_base": 100_000.0, "max_length": 8192}
    return shaped(sizes, **fields | more)


def llama3(sizes: Sizes, *, factor: float, tied: bool) -> ModelConfig:
    """Llama 3.1 and 3.2."""
    return shaped(
        sizes,
        vocab_size=128_256,
        norm_eps=1e-5,
        rope_base=500_000.0,
        rope_scaling=RopeScaling(kind="llama3", factor=factor),
        tied_embeddings=tied,
        max_length=131_072,
    )


def qwen25(sizes: Sizes, **more: Any) -> ModelConfig:
    """Qwen 2.5: biases on queries, keys and values."""
    fields = {"vocab_size": 151_936, "rope_base": 1e6, "max_length": 32_768}
    return shaped(sizes, qkv_bias=True, **fields | more)


def qwen3(sizes: Sizes, **more: Any) -> ModelConfig:
    """Qwen 3: norms of queries and keys."""
    fields = {"vocab_size": 151_936, "rope_base": 1e6, "max_length": 40_960}
    return shaped(sizes, qk_norm=True, **fields | more)


def gemma2(sizes: Sizes, **more: Any) -> ModelConfig:
    """Gemma 2: soft caps, every other layer local."""
    return shaped(
        sizes,
        vocab_size=256_000,
        attention_cap=50.0,
        logit_cap=30.0,
        window=4096,
        local_layers=tuple(i % 2 == 0 for i in range(sizes[0])),
        max_length=8192,
        **GEMMA | more,
    )


def gemma3(sizes: Sizes, *, window: int, **more: Any) -> ModelConfig:
    """Gemma 3: norms of queries and keys, five local layers to a global one."""
    fields = {"vocab_size": 262_144, "max_length": 32_768}
    return shaped(
        sizes,
        qk_norm=True,
        window=window,
        local_layers=tuple((i + 1) % 6 != 0 for i in range(sizes[0])),
        rope_base=1e6,
        rope_local_base=1e4,
        **GEMMA | fields | more,
    )


GEMMA: dict[str, Any] = {
    "activation": "gelu_tanh",
    "norm_plus_one": True,
    "post_norms": True,
    "embedding_scale": True,
}
GEMMA3_LONG: dict[str, Any] = {  # the multimodal sizes, with 128k tokens of context
    "vocab_size": 262_208,
    "max_length": 131_072,
    "rope_scaling": RopeScaling(kind="linear", factor=8.0),
}


def shaped(sizes: Sizes, **fields: Any) -> ModelConfig:
    """A config from its six sizes and other fields."""
    names = ("layers", "width", "heads", "kv_heads", "head_dim", "mlp_dim")
    return ModelConfig(**dict(zip(names, sizes, strict=True)), **fields)


SHAPES: dict[str, ModelConfig] = {
    "smollm2_135m": smollm2((30, 576, 9, 3, 64, 1536)),
    "smollm2_360m": smollm2((32, 960, 15, 5, 64, 2560)),
    "smollm2_1p7b": smollm2((24, 2048, 32, 32, 64, 8192), rope_base=130_000.0),
    "llama32_1b": llama3((16, 2048, 32, 8, 64, 8192), factor=32.0, tied=True),
    "llama32_3b": llama3((28, 3072, 24, 8, 128, 8192), factor=32.0, tied=True),
    "llama31_8b": llama3((32, 4096, 32, 8, 128, 14_336), factor=8.0, tied=False),
    "qwen25_0p5b": qwen25((24, 896, 14, 2, 64, 4864)),
    "qwen25_coder_0p5b": qwen25((24, 896, 14, 2, 64, 4864)),
    "qwen25_1p5b": qwen25((28, 1536, 12, 2, 128, 8960)),
    "qwen25_3b": qwen25((36, 2048, 16, 2, 128, 11_008)),
    "qwen25_7b": qwen25((28, 3584, 28, 4, 128, 18_944), vocab_size=152_064, tied_embeddings=False),
    "qwen25_32b": qwen25((64, 5120, 40, 8, 128, 27_648), vocab_size=152_064, tied_embeddings=False),
    "qwen3_0p6b": qwen3((28, 1024, 16, 8, 128, 3072)),
    "qwen3_1p7b": qwen3((28, 2048, 16, 8, 128, 6144)),
    "qwen3_4b": qwen3((36, 2560, 32, 8, 128, 9728)),
    "qwen3_8b": qwen3((36, 4096, 32, 8, 128, 12_288), tied_embeddings=False),
    "gemma2_2b": gemma2((26, 2304, 8, 4, 256, 9216)),
    "gemma2_9b": gemma2((42, 3584, 16, 8, 256, 14_336)),
    "gemma2_27b": gemma2((46, 4608, 32, 16, 128, 36_864), query_scale=144**-0.5),
    "gemma3_270m": gemma3((18, 640, 4, 1, 256, 2048), window=512),
    "gemma3_1b": gemma3((26, 1152, 4, 1, 256, 6912), window=512),
    "gemma3_4b": gemma3((34, 2560, 8, 4, 256, 10_240), window=1024, **GEMMA3_LONG),
    "gemma3_12b": gemma3((48, 3840, 16, 8, 256, 15_360), window=1024, **GEMMA3_LONG),
    "gemma3_27b": gemma3(
        (62, 5376, 32, 16, 128, 21_504), window=1024, query_scale=168**-0.5, **GEMMA3_LONG
    ),
}
HUB_IDS = {  # Hugging Face repositories of the presets that configs/ uses
    "smollm2_135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2_360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2_1p7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "llama32_1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama32_3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama31_8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen25_0p5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen25_coder_0p5b": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "qwen25_1p5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen25_7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen25_32b": "Qwen/Qwen2.5-32B-Instruct",
    "qwen3_0p6b": "Qwen/Qwen3-0.6B",
    "qwen3_4b": "Qwen/Qwen3-4B",
    "gemma2_2b": "google/gemma-2-2b-it",
    "gemma2_9b": "google/gemma-2-9b-it",
    "gemma3_270m": "google/gemma-3-270m-it",
    "gemma3_1b": "google/gemma-3-1b-it",
    "gemma3_27b": "google/gemma-3-27b-it",
}


def by_hub_id(hub_id: str) -> ModelConfig:
    """The config of a published model by its Hugging Face repository.

    Raises:
      ValueError: no preset has this repository.
    """
    for name, known in HUB_IDS.items():
        if known == hub_id:
            return SHAPES[name]
    raise ValueError(
        f"weights.source is 'hub:{hub_id}'; no preset has its config: set config.model, or "
        "choose a preset"
    )
