"""The programs of a step and of evaluation with abstract arguments; no array is allocated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from score_jax.distributed import sharding
from score_jax.records import Task
from score_jax.rl.dialogue import Encoder
from score_jax.rl.sampling_plan import SamplingConfig
from score_jax.stages.build import StagePrograms, greedy_sampling
from score_jax.stages.program import Program
from score_jax.tasks import registry
from score_jax.types import Episodes, Prompts

KEPT = ("params", "optimizer", "reference")  # of `resident_bytes`, through a whole step


@dataclass(frozen=True)
class Call:
    """A program and its abstract arguments."""

    name: str
    program: Program
    arguments: tuple[Any, ...]
    resident: tuple[str, ...]  # keys of `resident_bytes`: on the chip, but no argument


def placed(shapes: Any, shardings: Any) -> Any:
    """Adds shardings to shapes: one for all leaves, or a tree of them.

    Weak types stay: with others a program would be compiled anew where it is called.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        shared = shardings
        shardings = jax.tree.map(lambda _: shared, shapes)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding, weak_type=getattr(x, "weak_type", False)
        ),
        shapes,
        shardings,
    )


def result(program: Program, *arguments: Any) -> Any:
    """Shapes of a program's results."""
    with jax.set_mesh(program.mesh), nn.logical_axis_rules(program.rules):
        return jax.eval_shape(program.jitted, *arguments)


def calls(programs: StagePrograms, tasks: Mapping[str, Task] | None = None) -> list[Call]:
    """The programs of one training step, in the order in which they run.

    Args:
      tasks: of the problems, which say how long instructions are; None: the stage's own.
    """
    rows, settings = sharding.rows(programs.mesh), programs.settings
    state, reference = programs.abstract_state(), whole_model(programs)
    drawing, episodes = sampling_calls(
        programs, settings.sampling, encoder(programs, tasks), settings.batch, KEPT
    )
    drawn = episodes
    if settings.objective.repeat_penalty:  # which grading adds, before redraws are scored
        taken = jax.ShapeDtypeStruct(episodes.rewards.shape, np.float32)
        episodes = episodes.replace(shaping=placed(taken, rows))
    if settings.sampling.redraws:
        drawn = episodes
    scores = placed(result(programs.score, reference, drawn), rows)
    kept, merged = KEPT, ("merged",)
    found = [
        # The argument is the policy: the parameters, or the base with the adapter merged.
        Call("reshard", programs.reshard, (reference,), kept if programs.merge else kept[1:]),
        *drawing,
        Call("score", programs.score, (reference, drawn), kept[:2] + merged),
        Call("update", programs.update, (state, reference, episodes, scores), ()),
    ]
    if programs.merge is not None:
        found.insert(0, Call("merge", programs.merge, (reference, state.params), ("optimizer",)))
    return found


def sampling_calls(
    programs: StagePrograms,
    sampling: SamplingConfig,
    asked: Encoder,
    problems: int,
    kept: tuple[str, ...],
    label: str = "",
) -> tuple[list[Call], Episodes]:
    """The two programs that draw dialogues, and the shapes of these.

    Args:
      asked: what encodes the problems.
      problems: in a batch.
      kept: keys of `resident_bytes` of what is held meanwhile; with an adapter its merged sum too.
      label: stands before the programs' names.
    """
    kept = (*kept, "merged")
    if programs.draws_as_trained:  # those that are drawn from are an argument already
        kept = tuple(name for name in kept if name != ("merged" if programs.merge else "params"))
    prompts = placed(abstract_prompts(asked, problems), sharding.rows(programs.mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    sample = programs.sample(sampling, asked.plan)
    sampled = placed(result(programs.reshard, whole_model(programs)), programs.sample_shardings)
    cache, drawn = result(sample.prefill, sampled, prompts)
    cache = placed(cache, jax.tree.broadcast(sample.prompt_shardings, cache))
    drawn = placed(drawn, jax.tree.broadcast(sample.drawn_shardings, drawn))
    turn = placed(jax.ShapeDtypeStruct((), np.int32), sharding.replicated(programs.mesh))
    drawing = (sampled, prompts, key, cache, drawn, turn)
    episodes = placed(result(sample.decode, *drawing)[1], sharding.rows(programs.mesh))
    found = [
        Call(f"{label}prefill", sample.prefill, (sampled, prompts), kept),
        Call(f"{label}decode", sample.decode, drawing, kept),  # once for each turn
    ]
    return found, episodes


def collect_calls(
    programs: StagePrograms, tasks: Mapping[str, Task], *, trained: bool
) -> list[Call]:
    """The programs of a stage that draws dialogues and learns nothing; it has no optimiser.

    Args:
      tasks: of its problems.
      trained: whether its policy is another one than the base model.
    """
    settings, reference = programs.settings, whole_model(programs)
    kept = ("params", "reference") if trained else ("reference",)
    asked = encoder(programs, tasks)
    drawing, _ = sampling_calls(programs, settings.sampling, asked, settings.batch, kept)
    return [Call("reshard", programs.reshard, (reference,), kept[:-1]), *drawing]


def evaluation_calls(
    programs: StagePrograms, tasks: Mapping[str, Task], problems: int
) -> list[Call]:
    """The programs that draw dialogues on held-out problems: greedy ones, and samples.

    The optimiser's state is gone when the last checkpoint is measured, but not in validation.

    Args:
      tasks: of these problems.
      problems: how many there are.
    """
    settings, shards = programs.settings, sharding.row_shards(programs.mesh)
    config, greedy = settings.evaluation, greedy_sampling(settings)
    kept = KEPT if config.every else ("params", "reference")
    asked = programs.encoder(settings.measured_plan, greedy.prompt_limit, tasks)
    batch = -(-min(config.batch, problems) // shards) * shards
    found, _ = sampling_calls(programs, greedy, asked, batch, kept, "evaluation's ")
    if config.samples:
        sampled = replace(greedy, group_size=config.samples, temperature=config.temperature)
        more, _ = sampling_calls(programs, sampled, asked, batch, kept, "evaluation's sampled ")
        found += more
    return found


def supervised_call(programs: StagePrograms, rows: Episodes) -> Call:
    """The program of a supervised step, for rows as the stage learns from."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), rows)
    episodes = placed(shapes, sharding.rows(programs.mesh))
    arguments = (programs.abstract_state(), whole_model(programs), episodes)
    return Call("sft_update", programs.sft_update, arguments, ())


def encoder(programs: StagePrograms, tasks: Mapping[str, Task] | None = None) -> Encoder:
    """What encodes problems of these tasks; None: of the stage's own."""
    settings = programs.settings
    tasks = tasks or {"": registry.get(settings.task)}
    return programs.encoder(settings.plan, settings.sampling.prompt_limit, tasks)


def abstract_prompts(asked: Encoder, problems: int) -> Prompts:
    """Shapes of the prompts of so many problems."""
    none = asked.prompts([], [])  # arrays of no rows
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
