"""Whether a stage's programs fit the memory of the devices at hand, before anything is allocated.

The programs are those of training and evaluation, compiled from shapes. JAX keeps what it
compiles in this process, so the first step does not compile them again.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.errors import JaxRuntimeError

from score_jax.distributed import processes
from score_jax.stages import step_programs
from score_jax.stages.build import StagePrograms
from score_jax.stages.settings import Settings
from score_jax.stages.step_programs import Call

GIB = 1 << 30
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
SAMPLERS = ("prefill", "decode", "reshard")
GPU_SHARE = 0.9  # of a GPU's memory, unless the environment says another; JAX's own is 0.75
GPU_SETTINGS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # now, before
FULL = "RESOURCE_EXHAUSTED"  # how XLA begins to say that memory is not enough


def reserve() -> None:
    """Has JAX take a GPU's memory but for a tenth; before it opens its devices."""
    if not any(name in os.environ for name in GPU_SETTINGS):
        os.environ[GPU_SETTINGS[0]] = str(GPU_SHARE)


class MemoryShortError(ValueError):
    """A program of the stage needs more memory than its device has."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one program takes, and what the step holds beside it; bytes per device."""

    name: str
    own_bytes: int  # arguments, results and temporaries; 0 where the compiler does not tell
    resident_bytes: int
    argument_bytes: int = 0
    refused: str = ""  # what the compiler said when it found no room; "": it compiled

    @property
    def total_bytes(self) -> int:
        """Memory in use while the program runs."""
        return self.own_bytes + self.resident_bytes


class Taken(Protocol):
    """What a program takes, by whichever planner."""

    @property
    def name(self) -> str: ...
    @property
    def resident_bytes(self) -> int: ...
    @property
    def argument_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def refused(self) -> object: ...


def program_bytes(compiled: Any, platform: str) -> int:
    """The memory of a compiled program per device, by its compiler; 0 where it does not tell.

    What CPU's and GPU's compilers call the peak leaves temporaries out.
    """
    found = compiled.memory_analysis()
    if found is None:
        return 0
    if platform == "tpu":
        return found.peak_memory_in_bytes
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + results + found.temp_size_in_bytes


def need(call: Call, resident: dict[str, int]) -> Need:
    """Compiles a program and reads what it takes."""
    others = sum(resident[name] for name in call.resident)
    try:
        compiled = call.program.lower(*call.arguments).compile()
    except JaxRuntimeError as error:
        if FULL not in str(error):
            raise
        said = str(error).strip().splitlines()[0]
        return Need(name=call.name, own_bytes=0, resident_bytes=others, refused=said)
    platform, found = call.program.mesh.devices.flat[0].platform, compiled.memory_analysis()
    return Need(
        name=call.name,
        own_bytes=program_bytes(compiled, platform),
        resident_bytes=others,
        argument_bytes=found.argument_size_in_bytes if found else 0,
    )


def needs(programs: StagePrograms, calls: Iterable[Call]) -> list[Need]:
    """What each program takes, on the devices of its mesh; those that are not run are left out."""
    resident = step_programs.resident_bytes(programs)
    same = programs.draws_as_trained
    run = (call for call in calls if not (same and call.name == "reshard"))
    return [need(call, resident) for call in run]


def short_of(found: Iterable[Taken], limit: int | None) -> list[Taken]:
    """The programs that find no room.

    Args:
      limit: bytes; None: as far as the compiler says.
    """
    return [one for one in found if one.refused or (limit is not None and one.total_bytes > limit)]


def host_bytes() -> int:
    """The memory of this machine, or of the container that it runs in."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, CGROUPS):
        text = path.read_text(encoding="ascii").strip() if path.is_file() else ""
        found += [int(text)] if text.isdigit() else []
    return min(found)


def limit_bytes(devices: Sequence[Any]) -> int | None:
    """Memory that a program may take on each device; None where the device does not tell.

    CPU devices share their machine's; of a GPU it is what JAX lets itself have.
    """
    if devices[0].platform == "cpu":
        return host_bytes() // len(devices)
    told = ((device.memory_stats() or {}).get("bytes_limit") for device in devices)
    return min(filter(None, told), default=None)


def describe(found: Sequence[Need], devices: Sequence[Any], limit: int | None) -> str:
    """One line: the largest program, and what it may take."""
    if refused := [one for one in found if one.refused]:
        return f"memory: the compiler finds no room for {refused[0].name} ({refused[0].refused})"
    if limit is None:
        return "memory: the devices do not tell how much they have"
    largest = max(found, key=lambda one: one.total_bytes)
    return (
        f"memory: {largest.total_bytes / GIB:.2f} of {limit / GIB:.2f} GiB "
        f"{share_of(devices)} ({largest.name}, with what stays beside it)"
    )


def share_of(devices: Sequence[Any]) -> str:
    """Of what the limit is a part, and what sets it."""
    if devices[0].platform != "gpu":
        return "a device" if len(devices) > 1 or devices[0].platform == "tpu" else "there are"
    name, share = next(
        ((name, os.environ[name]) for name in GPU_SETTINGS if name in os.environ),
        (GPU_SETTINGS[0], "0.75"),
    )
    kept = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true").lower() not in ("0", "false")
    when = "reserved at the start" if kept else "taken as needed"
    return f"a GPU, {when} ({name}={share})"


def check(programs: StagePrograms, calls: Sequence[Call]) -> str:
    """Compiles a stage's programs and compares what they take with what the devices have.

    All hosts must call.

    Returns:
      What to log.

    Raises:
      MemoryShortError: a program of any host takes more; the message says what to change.
    """
    devices = [d for d in programs.mesh.devices.flat if d.process_index == jax.process_index()]
    limit, found = limit_bytes(devices), needs(programs, calls)
    told = describe(found, devices, limit)
    short = short_of(found, limit)
    advice = "; ".join(dict.fromkeys(remedy(one, programs.settings, devices) for one in short))
    refusals = processes.all_gather_objects(f"{told}: it does not fit. {advice}" if short else "")
    if found_short := next(filter(None, refusals), ""):
        raise MemoryShortError(found_short)
    return told


def remedy(one: Taken, settings: Settings, devices: Sequence[Any]) -> str:
    """What to change for a program that takes too much, the first thing first."""
    mesh = settings.mesh
    spread = len(devices) > 1 and devices[0].platform != "cpu"  # CPUs share one memory
    more = ["config.lora.rank=16, which trains an adapter alone"] if not settings.lora else []
    held = one.resident_bytes + one.argument_bytes
    if one.name == "merge" or held > 0.9 * one.total_bytes > 0:
        split = [f"raise config.mesh.fsdp (now {mesh.fsdp}) over more devices"]
        alone = [*(split if spread else []), *more, "a smaller model, or a device with more memory"]
        return f"{one.name}: parameters and their like are too large; " + ", or ".join(alone)
    if one.name.startswith("evaluation"):
        return f"{one.name}: lower config.evaluation.batch (now {settings.evaluation.batch})"
    if one.name in SAMPLERS:
        split = (
            f"raise config.mesh.sampling_tensor (now {mesh.sampling_tensor}) and lower "
            f"config.mesh.fsdp (now {mesh.fsdp}) by the same factor, so that the sampler's copy "
            "of the parameters is split over more devices"
        )
        rows = (
            f"lower config.batch (now {settings.batch}) or config.sampling.group_size (now "
            f"{settings.sampling.group_size})"
        )
        return f"{one.name}: " + ", or ".join([*([split] if spread else []), rows, *more])
    learner, remat = settings.learner, settings.compute.remat or "as the model"
    fewer = (
        f"raise config.learner.microbatches (now {learner.microbatches})",
        f"set config.compute.remat to full (now {remat!r})",
        f"a small config.learner.logits_chunk (now {learner.logits_chunk or 'automatic'})",
    )
    return f"{one.name}: " + ", or ".join([*fewer, *more])
