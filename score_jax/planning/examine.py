"""Compiles a stage's programs for a topology; reports memory, traffic and time bounds."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jax.errors import JaxRuntimeError

from score_jax.distributed import sharding
from score_jax.planning import flops, hlo, roofline, step_programs, tpu, traffic
from score_jax.planning.chips import Topology
from score_jax.planning.step_programs import Call
from score_jax.rl.learner import scores_before
from score_jax.rl.packing import microbatch_rows
from score_jax.rl.sampling_plan import loop_trips
from score_jax.stages.build import StagePrograms, build
from score_jax.stages.settings import Settings


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


def decode_steps(programs: StagePrograms) -> int:
    """Tokens that the sampling loops append to a row if every turn reaches its limit."""
    settings, encoder = programs.settings, step_programs.encoder(programs)
    return settings.plan.steps(encoder.block, settings.sampling.row_limit)


def sampling_trips(programs: StagePrograms) -> list[float]:
    """`loop_trips` of a stage's sampling program."""
    settings = programs.settings
    shards = sharding.row_shards(programs.mesh, sharding.SAMPLE_ROW_AXES)
    return loop_trips(
        settings.plan,
        step_programs.encoder(programs).block,
        settings.sampling,
        rows=settings.batch * settings.sampling.group_size // shards,
        shards=shards,
    )


def packed_steps(programs: StagePrograms, name: str) -> list[int]:
    """Microbatches of each loop of `score` or `update` where every row is as long as it may be."""
    settings, learner = programs.settings, programs.settings.learner
    if not learner.pack:
        return []
    rows = settings.batch * settings.sampling.group_size // programs.learner.row_shards

    def loop(rows: int, microbatches: int) -> int:
        return -(-rows // microbatch_rows(rows, microbatches))

    scored = loop(rows, learner.microbatches * learner.minibatches)
    if name == "score":
        return [scored]
    learnt = loop(rows // learner.minibatches, learner.microbatches)
    return [scored, learnt] if scores_before(programs.learner) else [learnt]


def loop_steps(programs: StagePrograms, name: str) -> Sequence[float]:
    """Iterations of each loop of a program whose end depends on data, in its longest run."""
    if name == "sample":
        return sampling_trips(programs)
    return packed_steps(programs, name) if name in ("score", "update") else []


def examine(
    programs: StagePrograms, call: Call, topology: Topology, resident: dict[str, int]
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
    steps = loop_steps(programs, call.name)
    module = hlo.parse(compiled.as_text())
    shares = flops.layer_shares(programs.decoder.config)
    sent = hlo.collectives(module, steps=steps, shares=shares)
    once, loops = flops.count(traced.jaxpr.jaxpr, shares)
    moved = traffic.hbm_traffic(module, steps, shares)
    chip = topology.chip
    looped = sum(n * body for n, body in zip(steps, loops, strict=True))
    if call.name == "sample":
        inside, outside = ([c for c in sent if c.in_loop == looping] for looping in (True, False))
        phases = [
            roofline.phase("prefill", chip, once / mesh.size, moved.once, outside),
            roofline.phase("decode", chip, looped / mesh.size, moved.in_loop, inside),
        ]
    else:  # a loop over microbatches is no phase of its own
        sent = [replace(c, in_loop=False) for c in sent]
        work = (once + looped) / mesh.size
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
    resident: dict[str, int]  # bytes per chip of the arrays that outlive a program
    programs: list[Examined]
    steps: int  # iterations of the sampling loops in all
    useful_flops: float  # of one training step over all chips, without recomputation

    @property
    def hbm_bytes(self) -> int:
        """The step's peak per chip."""
        return max(one.total_bytes for one in self.programs)

    @property
    def fits(self) -> bool:
        """Whether every program compiled and the peak is within the chip's usable HBM."""
        fits = self.hbm_bytes <= self.topology.chip.hbm_bytes
        return fits and not any(one.refused for one in self.programs)

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
) -> Plan:
    """Compiles every program of a step.

    Args:
      known: cache of programs that earlier calls examined; new ones are added to it.
    """
    programs = build(settings, devices)
    resident = step_programs.resident_bytes(programs)
    found = []
    for call in step_programs.calls(programs):
        learner = None if call.name in ("reshard", "sample") else settings.learner
        remat = programs.decoder.config.remat if call.name == "update" else None
        key = (call.name, settings.mesh, learner, remat)
        if known is None or key not in known:
            examined = examine(programs, call, topology, resident)
            print(f"compiled {call.name} in {examined.compile_seconds:.0f} s", flush=True)
            if known is not None:
                known[key] = examined
        else:
            examined = known[key]
        found.append(examined)
    return Plan(
        settings=settings,
        topology=topology,
        resident=resident,
        programs=found,
        steps=decode_steps(programs),
        useful_flops=useful_flops(programs),
    )


def useful_flops(programs: StagePrograms) -> float:
    """Operations of one step: sampling, the reference's forward pass, and the update.

    The update counts as three forward passes, its backward pass being two of them.
    """
    settings, config = programs.settings, programs.decoder.config
    sampling = settings.sampling
    rows = settings.batch * sampling.group_size
    length = step_programs.encoder(programs).row_length(sampling.row_limit)
    drawn = decode_steps(programs)
    policy = settings.plan.drawn_tokens
    prefill = flops.forward_flops(
        config, settings.batch * sampling.prompt_limit, sampling.prompt_limit / 2, 0
    )
    decode = flops.forward_flops(config, rows * drawn, length - drawn / 2, rows * drawn)
    whole = flops.forward_flops(config, rows * length, length / 2, rows * policy)
    return prefill + decode + 4 * whole
