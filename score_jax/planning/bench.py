"""Measures a config on the devices at hand: a training step's phases, compilation and memory.

    python -m score_jax.main --config=configs/stage2.py --mode=bench
        [--lengths=drawn|full|realistic] [--repeats=5] [--config.field=value ...]

The programs are those that training runs, compiled once and timed apart; every repeat does the
same work. `drawn`: dialogues are as long as the model makes them. `full` and `realistic` end
turns at their limits, or at lengths from a long-tailed list, so that random weights give
realistic work: weights from the hub are then replaced by random ones of their shape.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from score_jax.distributed import sharding
from score_jax.planning import bench_table
from score_jax.planning.chips import DEVICE_KINDS
from score_jax.planning.command import without_weights
from score_jax.planning.turn_lengths import fitting, given_lengths
from score_jax.planning.work import (
    StepCounts,
    count_step,
    decode_bytes,
    decode_flops,
    learner_bytes,
    learner_flops,
)
from score_jax.report.json_files import write_json
from score_jax.rl.keys import run_key
from score_jax.stages.build import StagePrograms, build, load_reference
from score_jax.stages.memory import program_bytes
from score_jax.stages.problem_sets import read, training_spec
from score_jax.stages.program import Program
from score_jax.stages.settings import Settings
from score_jax.types import Episodes, Prompts

LENGTHS = ("drawn", "full", "realistic")
NEVER = (-1,)  # no token has this id: turns end at their lengths alone


def run_bench(
    settings: Settings, folder: Path, *, lengths: str = "drawn", repeats: int = 5
) -> dict[str, Any]:
    """Measures a stage's step, prints a table and writes bench.json.

    Args:
      lengths: one of LENGTHS.
      repeats: times that every phase is timed, after one run that is not.

    Returns:
      The content of bench.json.

    Raises:
      ValueError: the stage is none of RL, or no problem fits its limits.
    """
    if settings.program != "rl":
        raise ValueError(f"config.program is {settings.program!r}; --mode=bench measures rl stages")
    if lengths != "drawn":
        settings = without_weights(settings)
    programs = build(settings)
    tasks, problems = read(training_spec(settings))
    encoder = programs.encoder(settings.plan, settings.sampling.prompt_limit, tasks)
    chosen = fitting(encoder, problems, settings.batch)
    prompts = encoder.prompts(chosen, np.arange(settings.batch))
    if lengths == "realistic":
        prompts = prompts.replace(turn_limits=given_lengths(settings))
    measured = measure(programs, prompts, forced=lengths != "drawn", repeats=repeats)
    found = describe_run(programs, lengths, repeats) | results(programs, measured)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", found)
    print(bench_table.describe(found))
    print(f"bench: {folder / 'bench.json'}")
    return found


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What running the programs gave."""

    counts: StepCounts
    padding: float  # share of the learner's positions that hold no token that it needs
    seconds: dict[str, list[float]]  # of each phase
    compile_seconds: dict[str, float]  # of each program: tracing, lowering and compiling
    program_bytes: dict[str, int]  # peak memory of each program per device, by the compiler


def measure(programs: StagePrograms, prompts: Prompts, *, forced: bool, repeats: int) -> Measured:
    """Compiles a step's programs and times them on the same work."""
    settings, bench = programs.settings, Stopwatch(repeats)
    sample = programs.make_sampler(settings.sampling, settings.plan, NEVER if forced else ())
    reference = load_reference(programs)
    state = programs.init_state(programs.fresh(reference))
    policy = reference
    if programs.merge is not None:
        merge = bench.compile("merge", programs.merge, reference, state.params)
        policy = bench.time("merge", lambda: merge(reference, state.params))
    params = bench.time("reshard", lambda: programs.for_sampling(policy))
    rows, key = programs.to_global(prompts), run_key(settings.seed, "train", stage=settings.name)
    begin = bench.compile("prefill", sample.prefill, params, rows)
    turns = sample.numbers
    draw = bench.compile("decode", sample.decode, params, rows, key, *begin(params, rows), turns[0])

    def rollout() -> Any:
        prompt, state = begin(params, rows)
        for turn in turns:
            state, found = draw(params, rows, key, prompt, state, turn)
        return found

    bench.time("prefill", lambda: begin(params, rows))
    episodes = bench.time("sample", rollout)
    local = sharding.local_rows(episodes)
    rewards = np.random.default_rng(0).integers(0, 2, local.rewards.shape).astype(np.float32)
    episodes = episodes.replace(rewards=programs.to_global(rewards))
    judge = bench.compile("score", programs.score, reference, episodes)
    scores = bench.time("score", lambda: judge(reference, episodes))
    learn = bench.compile("update", programs.update, state, reference, episodes, scores)

    def update() -> Any:
        nonlocal state  # its arrays are donated
        state, found = learn(state, reference, episodes, scores)
        return found

    padding = bench.time("update", update)["padding"]
    check_lengths(local, prompts, forced=forced)
    return Measured(
        counts=count_step(local, np.asarray(prompts.length), settings.sampling.draft_tokens),
        padding=float(padding.total / padding.count),
        seconds=bench.seconds,
        compile_seconds=bench.compile_seconds,
        program_bytes=bench.program_bytes,
    )


def check_lengths(episodes: Episodes, prompts: Prompts, *, forced: bool) -> None:
    """Asserts that turns whose lengths are given have them, in rows that were not full before."""
    if not forced or prompts.turn_limits is None:
        return
    turns = np.arange(1, episodes.present.shape[1] + 1)
    drawn = (episodes.turn[..., None] == turns).sum(1)
    given = np.reshape(prompts.turn_limits, drawn.shape)
    open_end = episodes.length < episodes.tokens.shape[1]
    assert (drawn[open_end] == given[open_end]).all(), "turns have other lengths than given"


class Stopwatch:
    """Compiles programs and times phases; keeps what it finds."""

    def __init__(self, repeats: int):
        self.repeats = repeats
        self.seconds: dict[str, list[float]] = {}
        self.compile_seconds: dict[str, float] = {}
        self.program_bytes: dict[str, int] = {}

    def compile(self, name: str, program: Program, *arguments: Any) -> Any:
        """The program compiled for these arguments."""
        start = time.perf_counter()
        compiled = program.lower(*arguments).compile()
        self.compile_seconds[name] = time.perf_counter() - start
        platform = program.mesh.devices.flat[0].platform
        self.program_bytes[name] = program_bytes(compiled, platform)
        return compiled

    def time(self, name: str, run: Callable[[], Any]) -> Any:
        """Times a phase `repeats` times after a warm-up; returns its last result."""
        result = jax.block_until_ready(run())
        self.seconds[name] = []
        for _ in range(self.repeats):
            start = time.perf_counter()
            result = jax.block_until_ready(run())
            self.seconds[name].append(time.perf_counter() - start)
        return result


def describe_run(programs: StagePrograms, lengths: str, repeats: int) -> dict[str, Any]:
    """What was measured, and on what."""
    settings, device = programs.settings, programs.mesh.devices.flat[0]
    return {
        "stage": settings.name,
        "device": f"{device.platform}: {device.device_kind}",
        "devices": programs.mesh.size,
        "dtype": programs.decoder.config.dtype,
        "problems": settings.batch,
        "group_size": settings.sampling.group_size,
        "prompt_limit": settings.sampling.prompt_limit,
        "turn_limits": settings.plan.limits,
        "row_limit": settings.sampling.row_limit,
        "microbatches": settings.learner.microbatches,
        "lengths": lengths,
        "repeats": repeats,
        "compilation_cache": bool(jax.config.values["jax_compilation_cache_dir"]),
    }


def results(programs: StagePrograms, measured: Measured) -> dict[str, Any]:
    """Speeds, shares of the device's peak, compile times and memory."""
    config, counts = programs.decoder.config, measured.counts
    seconds = {name: median(times) for name, times in measured.seconds.items()}
    seconds["decode"] = max(seconds["sample"] - seconds["prefill"], 0.0)
    learner = programs.settings.learner
    state = programs.abstract_state()
    whole = jax.eval_shape(programs.init_params.jitted, jax.random.key(0))
    flops = learner_flops(config, counts) | {"decode": decode_flops(config, counts)}
    moved = learner_bytes(
        config,
        parameters=size(whole),
        trained=size(state.params),
        microbatches=learner.microbatches * learner.minibatches,
    ) | {"decode": decode_bytes(config, counts)}
    return {
        "counts": dataclasses.asdict(counts),
        "shares": counts.shares | {"padding": measured.padding},
        "seconds": {
            name: {"median": value, "all": measured.seconds.get(name, [])}
            for name, value in seconds.items()
        },
        "tokens_per_second": {
            "sample": counts.drawn / seconds["sample"],
            "score": counts.whole / seconds["score"],
            "update": counts.whole / seconds["update"],
        },
        "of_peak": shares_of_peak(programs, seconds, flops, moved),
        "compile_seconds": measured.compile_seconds,
        "memory": memory(programs, measured),
    }


def size(tree: Any) -> int:
    """Numbers in a tree of shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shares_of_peak(
    programs: StagePrograms,
    seconds: dict[str, float],
    flops: dict[str, float],
    moved: dict[str, float],
) -> dict[str, dict[str, float]] | str:
    """Each phase's share of the peak compute (MFU) and of the peak bandwidth.

    Returns:
      The reason, as a text, if the device's peaks are not known.
    """
    kind = programs.mesh.devices.flat[0].device_kind
    peak = DEVICE_KINDS.get(kind)
    if peak is None:
        return f"left out: no peak rates are known for {kind!r}"
    chips = programs.mesh.size
    return {
        name: {
            "mfu": work / seconds[name] / chips / peak.flops,
            "bytes_per_second": moved[name] / seconds[name] / chips,
            "bandwidth": moved[name] / seconds[name] / chips / peak.hbm_bandwidth,
        }
        for name, work in flops.items()
        if seconds[name] > 0
    }


def memory(programs: StagePrograms, measured: Measured) -> dict[str, Any]:
    """Peak bytes per device: as the device counted, else of the largest program."""
    found = [device.memory_stats() for device in programs.mesh.local_devices]
    used = [stats["peak_bytes_in_use"] for stats in found if stats]
    largest = max(measured.program_bytes, key=lambda name: measured.program_bytes[name])
    return {
        "peak_bytes": max(used, default=measured.program_bytes[largest]),
        "source": "the device" if used else f"the compiler: {largest} alone",
        "programs": measured.program_bytes,
    }
