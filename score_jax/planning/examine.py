"""Compiles a stage's programs for a topology; reports memory, traffic and time bounds."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jax.errors import JaxRuntimeError

from score_jax.distributed import sharding
from score_jax.planning import flops, hlo, roofline, tpu, traffic, turn_lengths
from score_jax.planning.chips import Topology
from score_jax.planning.course import Course, Lengths, cut_lengths, learner_course
from score_jax.rl.learner import scores_before
from score_jax.rl.sampling_plan import loop_trips
from score_jax.stages import memory, step_programs
from score_jax.stages.build import StagePrograms, build
from score_jax.stages.problem_sets import read, training_spec
from score_jax.stages.settings import Settings
from score_jax.stages.step_programs import Call


@dataclass(frozen=True, kw_only=True)
class Examined:
    """Memory, collectives and time bounds of one compiled program, per chip."""

    name: str
    own_bytes: int  # peak HBM of the program: arguments, results, temporaries
    resident_bytes: int  # HBM of the step's other arrays while the program runs
    argument_bytes: int = 0
    temporary_bytes: int = 0
    refused: bool = False  # the compiler failed with out of memory
    compile_seconds: float = 0.0  # wall time
    compile_cpu_seconds: float = 0.0  # over all threads of this process
    collectives: list[hlo.Collective] = field(default_factory=list)
    phases: list[roofline.Phase] = field(default_factory=list)

    @property
    def total_bytes(self) -> int:
        """Peak HBM in use while the program runs."""
        return self.own_bytes + self.resident_bytes


def full_lengths(programs: StagePrograms) -> Lengths:
    """Those of dialogues that are as long as they may be."""
    settings, encoder = programs.settings, step_programs.encoder(programs)
    rows = settings.batch * settings.sampling.group_size
    turns = np.tile(settings.plan.limits, (rows, 1))
    return step_lengths(programs, turns, np.full(rows, encoder.width))


def realistic_lengths(programs: StagePrograms) -> Lengths:
    """Those of the first training problems' prompts, and of turns from a long-tailed list."""
    settings = programs.settings
    tasks, problems = read(training_spec(settings))
    encoder = programs.encoder(settings.plan, settings.sampling.prompt_limit, tasks)
    found = turn_lengths.fitting(encoder, problems, settings.batch)
    opening = [len(encoder.opening(problem)[0]) for problem in found]
    turns = turn_lengths.given_lengths(settings)
    rows = np.repeat(opening, settings.sampling.group_size)
    return step_lengths(programs, turns.reshape(len(rows), -1), rows)


def step_lengths(programs: StagePrograms, turns: np.ndarray, opening: np.ndarray) -> Lengths:
    """Those of dialogues with such turns, as far as rows have room."""
    encoder, plan = step_programs.encoder(programs), programs.settings.plan
    width = encoder.row_length(programs.settings.sampling.row_limit)
    return cut_lengths(plan, turns, opening, block=encoder.block, width=width)


def course_of(programs: StagePrograms, name: str, lengths: Lengths) -> Course:
    """How a program of a step runs for dialogues of these lengths."""
    settings, learner = programs.settings, programs.learner
    kernels = flops.layer_shares(programs.decoder.config)
    if name == "decode":
        shards = sharding.row_shards(programs.mesh, sharding.SAMPLE_ROW_AXES)
        turns = lengths.turns.reshape(shards, -1, settings.plan.turns)
        trips = loop_trips(settings.plan, lengths.between, settings.sampling, turns)
        return Course(loops=trips, kernels=kernels, times=len(settings.plan.drawn))
    if name not in ("score", "update"):
        return Course(kernels=kernels)
    episodes = lengths.episodes()
    loops, chunks = learner_course(learner, episodes, updates=1)
    passes = [loops]
    if name == "update":
        loops, chunks = learner_course(learner, episodes, updates=learner.config.minibatches)
        passes = [*passes, loops] if scores_before(learner) else [loops]
    return Course(loops=[one for one in passes if one], kernels=kernels, chunks=chunks)


def examine(
    programs: StagePrograms,
    call: Call,
    topology: Topology,
    resident: dict[str, int],
    lengths: Lengths,
) -> Examined:
    """Compiles one program and reads memory, collectives, traffic and bounds from it."""
    others = sum(resident[name] for name in call.resident)
    mesh = call.program.mesh
    with call.program.traced():
        traced = call.program.jitted.trace(*call.arguments)
        lowered = traced.lower()
    wall, cpu = time.monotonic(), time.process_time()
    try:
        compiled = lowered.compile()
    except JaxRuntimeError as error:
        used = tpu.out_of_memory(error)
        if used is None:
            raise
        return Examined(name=call.name, own_bytes=used[0], resident_bytes=others, refused=True)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    memory: Any = compiled.memory_analysis()
    course = course_of(programs, call.name, lengths)
    module = hlo.parse(compiled.as_text())
    sent = hlo.collectives(module, course)
    once, loops = flops.count(flops.live(traced.jaxpr.jaxpr), course)
    moved = traffic.hbm_traffic(module, course)
    chip = topology.chip
    looped = sum(
        body * sum(visits) / len(visits) for visits, body in zip(course.loops, loops, strict=True)
    )
    if call.name != "decode":  # what is told of loops is meant of those that draw
        sent = [replace(c, in_loop=False) for c in sent]
    work = (once + looped) * course.times / mesh.size
    phases = [roofline.phase(call.name, chip, work, moved.once + moved.in_loop, sent)]
    return Examined(
        name=call.name,
        own_bytes=memory.peak_memory_in_bytes,
        resident_bytes=others,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        compile_seconds=wall,
        compile_cpu_seconds=cpu,
        collectives=sent,
        phases=phases,
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A stage on a topology."""

    settings: Settings
    topology: Topology
    devices: list[Any]  # abstract ones
    resident: dict[str, int]  # bytes per chip of the arrays that outlive a program
    programs: list[Examined]
    lengths: Lengths
    useful_flops: float  # of one training step over all chips, without recomputation

    @property
    def hbm_bytes(self) -> int:
        """The step's peak per chip."""
        return max(one.total_bytes for one in self.programs)

    @property
    def fits(self) -> bool:
        """Whether every program compiled and the peak is within the chip's usable HBM."""
        return not memory.short_of(self.programs, self.topology.chip.hbm_bytes)

    @property
    def seconds(self) -> float:
        """The lower bound of a step's time; 0 where a program was refused."""
        if any(one.refused for one in self.programs):
            return 0.0
        return sum(phase.seconds for one in self.programs for phase in one.phases)


def make_plan(
    settings: Settings,
    topology: Topology,
    devices: list[Any],
    known: dict[Any, Examined] | None = None,
    *,
    realistic: bool = False,
) -> Plan:
    """Compiles every program of a step.

    Args:
      realistic: dialogues have `realistic_lengths`, else `full_lengths`.
      known: cache of programs that earlier calls examined; new ones are added to it.
    """
    programs = build(settings, devices)
    resident = step_programs.resident_bytes(programs)
    lengths = (realistic_lengths if realistic else full_lengths)(programs)
    found = []
    for call in step_programs.calls(programs):
        learner = settings.learner if call.name in ("score", "update") else None
        remat = programs.decoder.config.remat if call.name == "update" else None
        key = (call.name, settings.mesh, learner, remat)
        if known is None or key not in known:
            examined = examine(programs, call, topology, resident, lengths)
            print(f"compiled {call.name} in {examined.compile_seconds:.0f} s", flush=True)
            if known is not None:
                known[key] = examined
        else:
            examined = known[key]
        found.append(examined)
    return Plan(
        settings=settings,
        topology=topology,
        devices=devices,
        resident=resident,
        programs=found,
        lengths=lengths,
        useful_flops=useful_flops(programs, lengths),
    )


def useful_flops(programs: StagePrograms, lengths: Lengths) -> float:
    """Operations of one step: sampling, the reference's forward pass, and the update.

    The update counts as three forward passes, its backward pass being two of them.
    """
    config, group = programs.decoder.config, programs.settings.sampling.group_size

    def forward(lengths: np.ndarray, with_logits: float = 0) -> float:
        """Of whole rows of these lengths."""
        tokens = lengths.sum()
        return flops.forward_flops(
            config, tokens, (lengths * (lengths + 1) / 2).sum() / tokens, with_logits
        )

    openings, drawn = lengths.opening[::group], lengths.turns.sum()
    decode = forward(lengths.whole, drawn) - forward(lengths.opening)
    return forward(openings) + decode + 4 * forward(lengths.whole, drawn)
