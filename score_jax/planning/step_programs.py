"""The programs of a training step with their abstract arguments; no array is allocated."""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from score_jax.distributed import sharding
from score_jax.rl.dialogue import Encoder
from score_jax.stages.build import StagePrograms
from score_jax.stages.program import Program
from score_jax.tasks import registry
from score_jax.types import Prompts


@dataclass(frozen=True)
class Call:
    """A program and its abstract arguments."""

    name: str
    program: Program
    arguments: tuple[Any, ...]
    resident: tuple[str, ...]  # keys of `resident_bytes`: on the chip, but no argument


def placed(shapes: Any, shardings: Any) -> Any:
    """Adds shardings to shapes: one for all leaves, or a tree of them."""
    if isinstance(shardings, jax.sharding.Sharding):
        shared = shardings
        shardings = jax.tree.map(lambda _: shared, shapes)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def result(program: Program, *arguments: Any) -> Any:
    """Shapes of a program's results."""
    with jax.set_mesh(program.mesh), nn.logical_axis_rules(program.rules):
        return jax.eval_shape(program.jitted, *arguments)


def calls(programs: StagePrograms) -> list[Call]:
    """The programs of one training step, in the order in which they run."""
    settings, rows = programs.settings, sharding.rows(programs.mesh)
    state, reference = programs.abstract_state(), whole_model(programs)
    prompts = placed(abstract_prompts(programs), rows)
    key = jax.eval_shape(lambda: jax.random.key(0))
    sample = programs.sample(settings.sampling, settings.plan)
    sampled = placed(result(programs.reshard, reference), programs.sample_shardings)
    cache, drawn = result(sample.prefill, sampled, prompts)
    cache = placed(cache, jax.tree.broadcast(sample.prompt_shardings, cache))
    drawn = placed(drawn, jax.tree.broadcast(sample.drawn_shardings, drawn))
    turn = jax.ShapeDtypeStruct((), np.int32)
    drawing = (sampled, prompts, key, cache, drawn, turn)
    episodes = placed(result(sample.decode, *drawing)[1], rows)
    scores = placed(result(programs.score, reference, episodes), rows)
    kept, merged = ("params", "optimizer", "reference"), ("merged",)
    found = [
        # The argument is the policy: the parameters, or the base with the adapter merged.
        Call("reshard", programs.reshard, (reference,), kept if programs.merge else kept[1:]),
        Call("prefill", sample.prefill, (sampled, prompts), kept + merged),
        Call("decode", sample.decode, drawing, kept + merged),  # once for each turn
        Call("score", programs.score, (reference, episodes), kept[:2] + merged),
        Call("update", programs.update, (state, reference, episodes, scores), ()),
    ]
    if programs.merge is not None:
        found.insert(0, Call("merge", programs.merge, (reference, state.params), ("optimizer",)))
    return found


def encoder(programs: StagePrograms) -> Encoder:
    """What encodes problems of the stage's own task."""
    settings = programs.settings
    tasks = {"": registry.get(settings.task)}
    return programs.encoder(settings.plan, settings.sampling.prompt_limit, tasks)


def abstract_prompts(programs: StagePrograms) -> Prompts:
    """Shapes of the prompts of one step."""
    encode, problems = encoder(programs), programs.settings.batch
    none = encode.prompts([], [])  # arrays of no rows
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((problems, *x.shape[1:]), x.dtype), none)


def whole_model(programs: StagePrograms) -> Any:
    """Shapes of the full model's parameters, with the shardings of the reference."""
    shapes = jax.eval_shape(programs.init_params.jitted, jax.random.key(0))
    return placed(shapes, programs.model_shardings)


def tree_bytes(tree: Any) -> int:
    """Bytes per chip of a tree of shapes with shardings."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


def resident_bytes(programs: StagePrograms) -> dict[str, int]:
    """Bytes per chip of a step's arrays; `merged`: the base with the adapter, in a rollout."""
    state, model = programs.abstract_state(), whole_model(programs)
    sampled = placed(result(programs.reshard, model), programs.sample_shardings)
    return {
        "params": tree_bytes(state.params),
        "optimizer": tree_bytes(state.opt_state),
        "reference": tree_bytes(model),
        "merged": tree_bytes(model) if programs.merge else 0,
        "sampling_params": tree_bytes(sampled),
    }
