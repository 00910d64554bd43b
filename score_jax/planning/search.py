"""Searches mesh, microbatches and remat for the fastest plan that fits."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from score_jax.distributed.sharding import MeshConfig
from score_jax.planning.chips import GIB, Topology
from score_jax.planning.examine import Examined, Plan, make_plan
from score_jax.stages.settings import Settings


def meshes(settings: Settings, topology: Topology) -> Iterator[MeshConfig]:
    """Meshes that divide the slice, the model's heads and the batch; the most sharded last."""
    model = settings.model
    heads = model.kv_heads if model else 1
    size = topology.slice_size
    for tensor in (1, 2, 4, 8):
        for shared in (1, 2, 4, 8, 16):
            split = tensor * shared
            rows = topology.chips // tensor
            if heads % split == 0 and size % split == 0 and settings.batch % rows == 0:
                yield MeshConfig(data=1, fsdp=size // split, sampling_tensor=shared, tensor=tensor)


def microbatches(settings: Settings, topology: Topology, mesh: MeshConfig) -> list[int]:
    """Numbers of microbatches that divide the rows of a device, the largest first."""
    rows = settings.batch * settings.sampling.group_size // (topology.chips // mesh.tensor)
    return [n for n in range(rows, 0, -1) if rows % n == 0]


def changed(settings: Settings, mesh: MeshConfig, **learner: Any) -> Settings:
    """The settings with another mesh and other learner fields."""
    return dataclasses.replace(
        settings, mesh=mesh, learner=dataclasses.replace(settings.learner, **learner)
    )


def best_plan(
    settings: Settings, topology: Topology, devices: list[Any], *, realistic: bool = False
) -> Plan:
    """The plan with the smallest lower bound of its step's time among those that fit.

    Tries every mesh with the least memory for activations (one row per microbatch, full
    remat); then, on the best mesh, one change at a time: fewer microbatches, less
    remat.

    Returns:
      The best plan that fits; where none does, the one with the lowest peak memory.

    Raises:
      ValueError: no mesh suits model, batch and topology.
    """
    known: dict[Any, Examined] = {}
    compute = dataclasses.replace(settings.compute, remat="full")
    settings = dataclasses.replace(settings, compute=compute)

    def attempt(candidate: Settings) -> Plan:
        plan = make_plan(candidate, topology, devices, known, realistic=realistic)
        mesh, learner = candidate.mesh, candidate.learner
        verdict = f"at least {plan.seconds:.1f} s" if plan.fits else "does not fit"
        print(
            f"tried fsdp={mesh.fsdp} sampling_tensor={mesh.sampling_tensor} tensor={mesh.tensor} "
            f"microbatches={learner.microbatches} "
            f"remat={candidate.compute.remat}: {plan.hbm_bytes / GIB:.2f} GiB, {verdict}",
            flush=True,
        )
        return plan

    found = [
        attempt(changed(settings, mesh, microbatches=microbatches(settings, topology, mesh)[0]))
        for mesh in meshes(settings, topology)
    ]
    if not found:
        raise ValueError(
            f"config.batch is {settings.batch}; no mesh of {topology.name} splits it and the "
            "model's heads: choose a batch that the number of chips divides, or another topology"
        )
    best = min(found, key=rank)
    for candidate in refinements(best, topology):
        best = min(best, attempt(candidate), key=rank)
    return best


def rank(plan: Plan) -> tuple[bool, float]:
    """Sort key: plans that fit first, by time; then the others, by peak memory."""
    return (not plan.fits, plan.seconds if plan.fits else plan.hbm_bytes)


def refinements(best: Plan, topology: Topology) -> Iterator[Settings]:
    """Changes that trade memory for time, one at a time."""
    if not best.fits:
        return
    settings = best.settings
    for count in microbatches(settings, topology, settings.mesh)[1:3]:
        yield changed(settings, settings.mesh, microbatches=count)
    compute = dataclasses.replace(settings.compute, remat="dots")
    yield dataclasses.replace(settings, compute=compute)
