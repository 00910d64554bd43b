"""Peak rates and memory of Cloud TPUs and GPUs, and the parser of topology names.

Source: cloud.google.com/tpu/docs/v5e, /v5p and /v6e: peak bf16 compute, bandwidths of HBM and,
for all ports in both directions, of ICI. HBM is what libtpu 0.0.42 lets a program use (of 16,
95 and 32 GiB), as its out-of-memory message states. DCN per chip: 50 Gbps on v5p (the same page),
6.4 Tbps per v5e pod of 256; v6e: 100 Gbps (jax-ml.github.io/scaling-book/tpus).
NVIDIA's data sheets of H100 SXM, H200, A100 80GB SXM, L4 and of the RTX 4090 (Ada architecture,
appendix A): dense bf16 compute, bandwidth of memory. A GPU's memory is what nvidia-smi calls total,
times the share that score_jax lets JAX have (stages.memory.GPU_SHARE).
"""

import math
import re
from dataclasses import dataclass

from score_jax.stages.memory import GIB, GPU_SHARE


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip; bandwidths in bytes per second."""

    name: str
    flops: float  # bf16 per second
    hbm_bytes: int  # that a program may use
    hbm_bandwidth: float
    ici_bandwidth: float  # sent, summed over all ports
    dcn_bandwidth: float
    dimensions: int  # of the torus
    pod: int  # chips
    accelerator: str  # the runtime's name of a slice: a template of {chips} or {cores}
    stand_in: str = ""  # topology whose first chip is compiled for in the place of a GPU


MIB = 1 << 20


def gpu(name: str, flops: float, mib: int, bandwidth: float) -> Chip:
    """One GPU; the compiler of a TPU with more memory stands in for its own."""
    return Chip(
        name=name, flops=flops, hbm_bytes=int(GPU_SHARE * mib * MIB), hbm_bandwidth=bandwidth,
        ici_bandwidth=math.inf, dcn_bandwidth=math.inf, dimensions=1, pod=1,
        accelerator="v5p-8", stand_in="v5p:2x2x1",
    )  # fmt: skip


CHIPS = {
    "v5e": Chip(
        name="v5e", flops=197e12, hbm_bytes=int(15.75 * GIB), hbm_bandwidth=819e9,
        ici_bandwidth=200e9, dcn_bandwidth=3.125e9, dimensions=2, pod=256,
        accelerator="v5litepod-{chips}",
    ),
    "v5p": Chip(
        name="v5p", flops=459e12, hbm_bytes=int(95.74 * GIB), hbm_bandwidth=2765e9,
        ici_bandwidth=600e9, dcn_bandwidth=6.25e9, dimensions=3, pod=8960,
        accelerator="v5p-{cores}",
    ),
    "v6e": Chip(
        name="v6e", flops=918e12, hbm_bytes=int(31.25 * GIB), hbm_bandwidth=1638e9,
        ici_bandwidth=400e9, dcn_bandwidth=12.5e9, dimensions=2, pod=256,
        accelerator="v6e-{chips}",
    ),
    "h100": gpu("h100", 990e12, 81_559, 3.35e12),
    "a100": gpu("a100", 312e12, 81_920, 2.039e12),
    "rtx4090": gpu("rtx4090", 165.2e12, 24_564, 1.008e12),
    "l4": gpu("l4", 121e12, 23_034, 300e9),
}  # fmt: skip


@dataclass(frozen=True)
class Peak:
    """The most that a device computes and moves."""

    flops: float  # bf16 per second
    hbm_bandwidth: float  # bytes per second


DEVICE_KINDS = {  # as jax names them
    "TPU v5 lite": Peak(CHIPS["v5e"].flops, CHIPS["v5e"].hbm_bandwidth),
    "TPU v5": Peak(CHIPS["v5p"].flops, CHIPS["v5p"].hbm_bandwidth),
    "TPU v5p": Peak(CHIPS["v5p"].flops, CHIPS["v5p"].hbm_bandwidth),
    "TPU v6 lite": Peak(CHIPS["v6e"].flops, CHIPS["v6e"].hbm_bandwidth),
    "NVIDIA H100 80GB HBM3": Peak(CHIPS["h100"].flops, CHIPS["h100"].hbm_bandwidth),
    "NVIDIA H200": Peak(990e12, 4.8e12),  # has more memory than any TPU that could stand in
    "NVIDIA A100-SXM4-80GB": Peak(CHIPS["a100"].flops, CHIPS["a100"].hbm_bandwidth),
    "NVIDIA GeForce RTX 4090": Peak(CHIPS["rtx4090"].flops, CHIPS["rtx4090"].hbm_bandwidth),
    "NVIDIA L4": Peak(CHIPS["l4"].flops, CHIPS["l4"].hbm_bandwidth),
}


@dataclass(frozen=True)
class Topology:
    """One or more slices, each a torus of chips."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def slice_size(self) -> int:
        """Chips of one slice."""
        return math.prod(self.shape)

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slices * self.slice_size

    @property
    def name(self) -> str:
        """The value of --topology."""
        times = f"{self.slices}*" if self.slices > 1 else ""
        return f"{times}{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def accelerator(self) -> str:
        """The accelerator type of a slice."""
        size = self.slice_size
        return self.chip.accelerator.format(chips=size, cores=2 * size)


def parse_topology(text: str) -> Topology:
    """Reads v5e:4x4, v5p:4x4x4 or, for several slices, 2*v5p:4x4x4; of one GPU, h100:1.

    Raises:
      ValueError: there is no such topology.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", text)
    chip = CHIPS.get(match[2]) if match else None
    if match is None or chip is None:
        raise ValueError(
            f"--topology is {text!r}; write a chip of {', '.join(CHIPS)} and its torus, such as "
            "v5e:4x4, v5p:4x4x4 or, for two slices, 2*v5p:4x4x4; of a GPU h100:1"
        )
    shape = tuple(int(n) for n in match[3].split("x"))
    size, slices = math.prod(shape), int(match[1] or 1)
    if chip.stand_in and (size, slices) != (1, 1):
        raise ValueError(f"--topology is {text!r}; of GPUs one can be planned for: {chip.name}:1")
    if len(shape) != chip.dimensions or not 1 <= size <= chip.pod or slices < 1:
        raise ValueError(
            f"--topology is {text!r}; {chip.name} slices have {chip.dimensions} dimensions and "
            f"1 to {chip.pod} chips"
        )
    return Topology(chip, shape, slices)
