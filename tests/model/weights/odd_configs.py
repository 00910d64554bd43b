"""A small config.json of each family, to be changed key by key."""

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
GEMMA = {"sliding_window": 5, "query_pre_attn_scalar": 8}
LOCAL = ["sliding_attention", "full_attention", "sliding_attention"]


def base_config(family):
    """What is the same in every test; keys may be overridden."""
    return {"model_type": family} | SIZES | (GEMMA if family.startswith("gemma") else {})
