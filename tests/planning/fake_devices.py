"""Run as a program with eight fake devices: writes what `test_programs.py` looks at.

    python -m tests.planning.fake_devices OUT.json [measure]

Compiles a tiny stage's programs for two meshes and counts; with `measure` it also holds
the bytes that the planner predicts against those that a step takes.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

from score_jax.planning import hlo
from score_jax.stages import step_programs
from score_jax.stages.build import build
from tests import eight_devices

MESHES = {"fsdp": {"fsdp": 8}, "sampling_tensor": {"data": 2, "fsdp": 2, "sampling_tensor": 2}}
STAND_IN = {"source": "stand_in"}
WIDE = {"vocab_size": 2048, "layers": 4, "width": 512, "mlp_dim": 2048, "head_dim": 64}


def stage(mesh, **model):
    """The stage of `eight_devices`, with one sampling loop and without a tokenizer."""
    settings = eight_devices.settings("", **mesh)
    return dataclasses.replace(
        settings,
        sampling=dataclasses.replace(settings.sampling, decode_segments=1, row_sizes=1),
        tokenizer=dataclasses.replace(settings.tokenizer, **STAND_IN),
        model=dataclasses.replace(settings.model, vocab_size=256, **model),
    )


def counted(mesh):
    """Collectives of the sampling programs and of the resharding before them."""
    programs = build(stage(mesh))
    found = {}
    for call in step_programs.calls(programs)[:3]:
        module = hlo.parse(call.program.lower(*call.arguments).compile().as_text())
        found[call.name] = [dataclasses.asdict(one) for one in hlo.collectives(module)]
    return found


def held_bytes(tree):
    """Bytes of a tree on the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def peak_bytes():
    """The most resident memory of this process since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def measured(mesh):
    """Predicted and measured bytes: of what a step keeps, and of one update."""
    settings = stage(mesh, **{k: v for k, v in WIDE.items() if k != "vocab_size"})
    settings = dataclasses.replace(
        settings, sampling=dataclasses.replace(settings.sampling, prompt_limit=64, turn_limit=64)
    )
    programs = build(settings)
    reference = programs.init_params(jax.random.key(1))
    state = programs.init_state(programs.init_params(jax.random.key(2)))
    kept = {
        "params": held_bytes(state.params),
        "optimizer": held_bytes(state.opt_state),
        "reference": held_bytes(reference),
        "merged": 0,
        "sampling_params": held_bytes(programs.for_sampling(state.params)),
    }
    call = next(c for c in step_programs.calls(programs) if c.name == "update")
    compiled = call.program.lower(*call.arguments).compile()
    memory = compiled.memory_analysis()
    _, _, episodes, scores = call.arguments
    rng = np.random.default_rng(0)

    def fill(shape):
        values = rng.integers(0, 3, shape.shape).astype(shape.dtype)
        return jax.device_put(values, shape.sharding)

    episodes, scores = jax.tree.map(fill, (episodes, scores))
    jax.block_until_ready((state, reference, episodes, scores))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is resident
    before = peak_bytes()
    jax.block_until_ready(programs.update(state, reference, episodes, scores))
    new = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "kept": kept,
        "predicted": step_programs.resident_bytes(programs),
        "update_predicted": new * len(jax.devices()),
        "update_measured": peak_bytes() - before,
    }


def main(out, *more):
    """Writes one JSON object."""
    assert len(jax.devices()) == 8, jax.devices()
    found = {name: counted(mesh) for name, mesh in MESHES.items()} if not more else {}
    if more:
        found["memory"] = measured(MESHES["sampling_tensor"])
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
