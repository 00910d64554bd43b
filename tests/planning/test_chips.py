"""Names of topologies, right and wrong."""

import pytest

from score_jax.planning.chips import parse_topology


@pytest.mark.parametrize(
    ("text", "chips", "slices", "accelerator"),
    [
        ("v5e:4x4", 16, 1, "v5litepod-16"),
        ("v5p:4x4x4", 64, 1, "v5p-128"),  # named by cores, two to a chip
        ("v6e:8x8", 64, 1, "v6e-64"),
        ("2*v5p:4x4x8", 256, 2, "v5p-256"),
        ("h100:1", 1, 1, "v5p-8"),  # of the slice that stands in
    ],
)
def test_topologies(text, chips, slices, accelerator):
    found = parse_topology(text)
    assert (found.chips, found.slices, found.accelerator) == (chips, slices, accelerator)
    assert found.name == text and found.slice_size * slices == chips


@pytest.mark.parametrize("text", ["", "v5e", "v9:4x4", "4x4", "v5e:4by4", "v5e:", "*v5e:4x4"])
def test_names_that_are_none(text):
    with pytest.raises(
        ValueError,
        match="write a chip of v5e, v5p, v6e, h100, a100, rtx4090, l4 and",
    ):
        parse_topology(text)


@pytest.mark.parametrize("text", ["v5e:4x4x4", "v5p:4x4", "v6e:32x32", "v5e:0x4", "0*v5e:4x4"])
def test_shapes_that_a_chip_does_not_have(text):
    with pytest.raises(ValueError, match=r"--topology is .* dimensions and 1 to"):
        parse_topology(text)


@pytest.mark.parametrize("text", ["h100:2", "2*l4:1"])
def test_of_gpus_one_can_be_planned_for(text):
    with pytest.raises(ValueError, match=r"of GPUs one can be planned for: \w+:1"):
        parse_topology(text)


def test_a_gpus_memory_is_the_share_that_jax_is_let_have():
    """Nine tenths of the 24,564 MiB that nvidia-smi tells of an RTX 4090."""
    assert parse_topology("rtx4090:1").chip.hbm_bytes / 2**30 == pytest.approx(21.59, abs=0.01)
