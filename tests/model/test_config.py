"""A model's fields are checked where they enter."""

import pytest

from score_jax.model.config import ModelConfig, RopeScaling

SIZES = {"vocab_size": 7, "layers": 3, "width": 6, "heads": 4, "kv_heads": 2}
SIZES |= {"head_dim": 4, "mlp_dim": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "model.layers is 0; set a positive integer"),
        ({"kv_heads": 3}, "model.heads is 4; set a multiple of model.kv_heads 3"),
        ({"head_dim": 5}, "model.head_dim is 5; RoPE needs an even number"),
        ({"local_layers": (True,)}, "model.local_layers has 1 entries; give one per layer, 3"),
        ({"activation": "relu"}, "model.activation is 'relu'; choose one of silu, gelu_tanh"),
        ({"remat": "some"}, "model.remat is 'some'"),
        ({"dtype": "float16"}, "model.dtype is 'float16'"),
    ],
)
def test_a_wrong_field_is_named(change, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        ModelConfig(**SIZES | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kind": "longrope"},
            "rope_scaling.kind is 'longrope'; choose one of linear, llama3, yarn",
        ),
        ({"factor": 0.0}, "rope_scaling.factor is 0.0; set a finite value above 0"),
        ({"factor": float("inf")}, "rope_scaling.factor is inf"),
        ({"attention_factor": -1.0}, "rope_scaling.attention_factor is -1.0"),
        ({"low_frequency_factor": 4.0}, "low_frequency_factor is 4.0; set less than high_freq"),
        ({"beta_slow": 32.0}, "beta_slow is 32.0; set less than beta_fast 32.0"),
    ],
)
def test_a_wrong_rope_scaling_is_named(change, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        RopeScaling(**{"kind": "yarn", "factor": 2.0} | change)


def test_a_scaling_of_local_layers_needs_their_base():
    linear = RopeScaling(kind="linear", factor=2.0)
    with pytest.raises(ValueError, match="rope_local_scaling is set without model"):
        ModelConfig(**SIZES, rope_local_scaling=linear)


def test_which_layers_are_local():
    assert ModelConfig(**SIZES).is_local == (False, False, False)
    assert ModelConfig(**SIZES, window=4).is_local == (True, True, True)
    some = (True, False, True)
    assert ModelConfig(**SIZES, window=4, local_layers=some).is_local == some
    assert ModelConfig(**SIZES, local_layers=some).is_local == (False, False, False)
