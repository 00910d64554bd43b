"""What a GGUF header leaves unsaid is worked out, or refused."""

import numpy as np
import pytest

from score_jax.weights.gguf import Stored
from score_jax.weights.gguf_config import llama3_scaling, query_scalar


def test_only_the_largest_gemmas_scale_queries_by_another_width():
    def header(arch, layers, width, heads, key):
        names = {"block_count": layers, "embedding_length": width}
        names |= {"attention.head_count": heads, "attention.key_length": key}
        return {f"{arch}.{name}": value for name, value in names.items()}

    assert query_scalar("gemma2", header("gemma2", 46, 4608, 32, 128), "gemma2") == 144
    assert query_scalar("gemma2", header("gemma2", 26, 2304, 8, 256), "gemma2") == 256
    assert query_scalar("gemma3_text", header("gemma3", 62, 5376, 32, 128), "gemma3") == 168


def test_llama3_scaling_is_recognised_from_its_factors(tmp_path):
    base, width = 500_000.0, 64
    frequencies = base ** -(np.arange(0, width, 2) / width)
    factors = []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(32.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 32 + smooth))
    path = tmp_path / "factors.bin"
    path.write_bytes(np.array(factors, np.float32).tobytes())
    place = Stored(0, 0, (width // 2,))
    found = llama3_scaling(path, place, {"rope_theta": base, "head_dim": width})
    assert (found["rope_type"], found["factor"]) == ("llama3", 32.0)
    with pytest.raises(ValueError, match="not the factors"):
        llama3_scaling(path, place, {"rope_theta": 10_000.0, "head_dim": width})
