"""Plans a run: whether a config fits a TPU slice, and bounds on its speed, without a TPU.

    python -m score_jax.main --config=configs/stage2.py:gemma2_2b_math --mode=plan
        --topology=v5e:4x4 [--search] [--config.mesh.fsdp=16 ...]
    python -m score_jax.main --config=configs/stage2.py --mode=plan

The TPU compiler runs on a CPU machine. It compiles the programs that training runs, from
the same `build`; weights are replaced by their shapes and the tokenizer by a stand-in.
For a GPU (h100:1) it stands in for that one's own: an estimate. Without a topology the
programs are compiled for the devices at hand, and nothing but their memory is told.
"""

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

from score_jax.distributed.sharding import MESH_AXES
from score_jax.model import published
from score_jax.planning import search as searching
from score_jax.planning.chips import GIB, parse_topology
from score_jax.planning.examine import Plan, make_plan
from score_jax.planning.tpu import topology_devices
from score_jax.report.json_files import write_json
from score_jax.stages import memory, step_programs
from score_jax.stages.build import build
from score_jax.stages.sections import TokenizerConfig, WeightsConfig
from score_jax.stages.settings import Settings
from score_jax.tasks import registry
from score_jax.text import hub


def run_plan(
    settings: Settings,
    topology: str,
    folder: Path,
    *,
    search: bool = False,
    realistic: bool = False,
) -> bool:
    """Makes a plan, prints it and writes plan.json.

    Args:
      realistic: dialogues are as long as models write them, else as long as they may be.

    Returns:
      Whether the config fits the topology.

    Raises:
      ValueError: the topology does not exist, the config does not suit it, or the TPU
        compiler is not installed.
    """
    if settings.program != "rl":
        raise ValueError(f"config.program is {settings.program!r}; --mode=plan plans rl stages")
    settings = without_weights(settings)
    if not topology:
        if search or realistic:
            flag = "--search" if search else "--lengths=realistic"
            raise ValueError(f"--topology is ''; {flag} is for a topology such as v5e:4x4: set one")
        return plan_here(settings, folder)
    slices = parse_topology(topology)
    devices = topology_devices(slices)
    make = searching.best_plan if search else make_plan
    plan = make(settings, slices, devices, realistic=realistic)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", as_json(plan))
    print(describe(plan))
    print(f"plan: {folder / 'plan.json'}")
    return plan.fits


def plan_here(settings: Settings, folder: Path) -> bool:
    """Prints what each program takes on the devices at hand, and writes plan.json.

    Returns:
      Whether all of them fit; True where the devices do not tell their memory.
    """
    programs = build(settings)
    tasks = {"": registry.get(settings.measured_task)}
    calls = step_programs.evaluation_calls(programs, tasks, settings.evaluation.batch)
    found = memory.needs(programs, step_programs.calls(programs) + calls)
    devices = list(programs.mesh.devices.flat)
    limit = memory.limit_bytes(devices)
    short = memory.short_of(found, limit)
    told = {
        "device": f"{devices[0].platform}: {devices[0].device_kind}",
        "devices": len(devices),
        "fits": not short,
        "limit_bytes": limit,
        "programs": {one.name: vars(one) | {"total_bytes": one.total_bytes} for one in found},
        "advice": [memory.remedy(one, settings, devices) for one in short],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", told)
    print(f"{told['device']}, {told['devices']} devices; GiB on each")
    print(f"{'program':22}    all    own   rest")
    for one in found:
        sizes = (one.total_bytes, one.own_bytes, one.resident_bytes)
        print(f"{one.name:22} " + " ".join(f"{size / GIB:6.2f}" for size in sizes))
    verdict = "DOES NOT FIT" if short else "fits"
    print(f"{memory.describe(found, devices, limit)}: {verdict if short or limit else 'not known'}")
    print("\n".join([*told["advice"], f"plan: {folder / 'plan.json'}"]))
    return not short


def without_weights(settings: Settings) -> Settings:
    """The settings with random weights of the published shape and a stand-in tokenizer."""
    source = settings.weights.source
    if not hub.is_hub(source):
        return settings
    model = settings.model or published.by_hub_id(hub.parse(source, "weights.source")[0])
    return dataclasses.replace(
        settings,
        model=model,
        weights=WeightsConfig(source="random"),
        tokenizer=TokenizerConfig(source="stand_in", chat=settings.tokenizer.chat),
    )


def speeds(plan: Plan) -> dict[str, float]:
    """Bounds of a step: least seconds, most policy tokens per second and chip, highest MFU."""
    if not plan.seconds:
        return {}
    chip, chips = plan.topology.chip, plan.topology.chips
    return {
        "step_seconds": plan.seconds,
        "tokens_per_second_per_chip": plan.lengths.turns.sum() / plan.seconds / chips,
        "mfu": plan.useful_flops / plan.seconds / chips / chip.flops,
    }


def as_json(plan: Plan) -> dict[str, Any]:
    """The content of plan.json; bytes and operations are per chip."""
    settings, topology = plan.settings, plan.topology
    versions = {name: version(name) for name in ("jax", "jaxlib", "libtpu")}
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "fits": plan.fits,
        "hbm_bytes": plan.hbm_bytes,
        "hbm_limit_bytes": topology.chip.hbm_bytes,
        "resident_bytes": plan.resident,
        "bounds": speeds(plan),
        "decode_steps": int(plan.lengths.appended.max()),
        "mean_tokens": {
            "opening": plan.lengths.opening.mean(),
            "turns": plan.lengths.turns.mean(0).tolist(),
        },
        "mesh": dataclasses.asdict(settings.mesh),
        "learner": dataclasses.asdict(settings.learner),
        "compute": dataclasses.asdict(settings.compute),
        "batch": settings.batch,
        "sampling": dataclasses.asdict(settings.sampling),
        "programs": {
            one.name: dataclasses.asdict(one)
            | {
                "total_bytes": one.total_bytes,
                "phases": {
                    phase.name: dataclasses.asdict(phase)
                    | {"seconds": phase.seconds, "bound": phase.bound}
                    for phase in one.phases
                },
            }
            for one in plan.programs
        },
        "advice": advice(plan),
        "versions": versions,
    }


def version(package: str) -> str:
    """The installed version of a package, or ""."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def describe(plan: Plan) -> str:
    """The plan as lines for the terminal."""
    limit = plan.topology.chip.hbm_bytes
    shape = plan.settings.mesh.shape(plan.topology.chips, plan.topology.slices)
    mesh = " ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))
    lines = [
        f"{plan.topology.name}, {plan.topology.chips} chips; mesh {mesh}; "
        f"{plan.settings.learner.microbatches} microbatches",
        f"dialogues of {plan.lengths.whole.mean():.0f} tokens on average, "
        f"{plan.lengths.whole.max()} at most",
        "resident on every chip, GiB: "
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in plan.resident.items() if size),
        "program    HBM GiB (own + rest)   compiled   collectives (runs, GB sent per chip)",
    ]
    for one in plan.programs:
        sent = "; ".join(
            f"{c.kind} of {c.group}{' over DCN' if c.across else ''}"
            f"{' in the loop' if c.in_loop else ''}: {c.count:.0f}, {c.wire_bytes / 1e9:.2f}"
            for c in one.collectives[:4]
        )
        flag = "  OUT OF MEMORY in the compiler" if one.refused else ""
        lines.append(
            f"{one.name:9}  {one.total_bytes / GIB:6.2f} ({one.own_bytes / GIB:5.2f} + "
            f"{one.resident_bytes / GIB:5.2f})  {one.compile_seconds:5.0f} s{flag}   {sent}"
        )
    lines.append("phase      lower bound, s:      compute     HBM     ICI     DCN")
    lines += [
        f"{p.name:9}  {p.seconds:8.2f} by {p.bound:7}  {p.compute_seconds:8.2f} "
        f"{p.hbm_seconds:7.2f} {p.ici_seconds:7.2f} {p.dcn_seconds:7.2f}"
        for one in plan.programs
        for p in one.phases
    ]
    if found := speeds(plan):
        redraws = plan.settings.sampling.redraws
        once = f", if it draws once of the {1 + redraws} times of sampling.redraws"
        lines.append(
            f"a step takes at least {found['step_seconds']:.1f} s: at most "
            f"{found['tokens_per_second_per_chip']:.0f} policy tokens/s/chip, "
            f"MFU {100 * found['mfu']:.1f}%{once if redraws else ''}"
        )
    room = (limit - plan.hbm_bytes) / GIB
    verdict = f"fits, {room:.2f} free" if plan.fits else f"DOES NOT FIT, {-room:.2f} too much"
    if stand_in := plan.topology.chip.stand_in:
        verdict += f" (an estimate: the compiler of {stand_in} stands in for the GPU's)"
    lines.append(f"peak {plan.hbm_bytes / GIB:.2f} of {limit / GIB:.2f} GiB per chip: {verdict}")
    return "\n".join(lines + [f"  {line}" for line in advice(plan)])


def advice(plan: Plan) -> list[str]:
    """One suggestion for each program that does not fit."""
    limit, devices = plan.topology.chip.hbm_bytes, plan.devices
    short = memory.short_of(plan.programs, limit)
    return [memory.remedy(one, plan.settings, devices) for one in short]
