"""Checks before a chain's first step: problems, gold answers, memory, disk space, a trial row.

Faults that would end a run after days, such as a prompt over the limit in the final
evaluation, are errors before training starts.
"""

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from score_jax.distributed import processes, sharding
from score_jax.rl.keys import run_key
from score_jax.rl.learner import score_episodes
from score_jax.rl.rollout import Grader, collect_rollout
from score_jax.stages import examples, memory, step_programs
from score_jax.stages.build import StagePrograms, build, check_lengths
from score_jax.stages.checkpoint import StorageError
from score_jax.stages.compilation import Compilations
from score_jax.stages.problem_sets import (
    ProblemSet,
    ProblemSetSpec,
    evaluation_spec,
    select,
    training_spec,
    validation_spec,
)
from score_jax.stages.program import Program
from score_jax.stages.settings import Settings
from score_jax.types import Params

TRIAL_TOKENS = 8  # most tokens per turn of the trial row
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class CheckedStage:
    """A stage's programs and its checked problems."""

    programs: StagePrograms
    training: ProblemSet
    validation: ProblemSet | None  # None: no validation during training
    evaluation: ProblemSet
    more: dict[str, ProblemSet]  # of evaluation.sets
    examples: examples.Examples | None  # rows of a supervised stage's steps

    def counts(self) -> dict[str, dict[str, int]]:
        """Numbers of problems per set, as run.json stores them."""
        sets = (self.training, self.validation, self.evaluation)
        counts = {problems.part: problems.counts() for problems in sets if problems is not None}
        return counts | {name: problems.counts() for name, problems in self.more.items()}


def check_stage(settings: Settings, workdir: Path) -> CheckedStage:
    """Builds a stage's programs and checks all of its problems; all hosts must call.

    Raises:
      ValueError: the stage can't finish with this config; the message says what to change.
    """
    programs = build(settings)
    training, rows = select_and_log(programs, training_spec(settings), workdir), None
    if settings.program == "supervised":
        encoder = programs.encoder(settings.plan, settings.sampling.prompt_limit, training.tasks)
        rows = examples.load(settings, encoder, workdir, training.problems)
    checked = CheckedStage(
        programs=programs,
        training=training,
        examples=rows,
        validation=select_and_log(programs, validation_spec(settings), workdir)
        if settings.evaluation.every
        else None,
        evaluation=select_and_log(programs, evaluation_spec(settings), workdir),
        more={
            name: select_and_log(programs, evaluation_spec(own), workdir, name)
            for name, own in settings.measured_sets.items()
        },
    )
    check_held_out(training, {"validation": checked.validation, "data": checked.evaluation})
    trained = checked.training.tasks
    check_lengths(programs, trained, checked.evaluation.tasks)
    for name, own in settings.measured_sets.items():
        check_lengths(
            dataclasses.replace(programs, settings=own), trained, checked.more[name].tasks
        )
    return checked


def check_held_out(training: ProblemSet, held_out: Mapping[str, ProblemSet | None]) -> None:
    """Refuses to measure on what is trained on; JSONL files and mixtures have no splits.

    A set of evaluation.sets may hold training problems, to measure how well those are known.

    Args:
      held_out: by the field of config.evaluation that names them.

    Raises:
      ValueError: a held-out problem is a training problem too, by id and text.
    """
    known = {(problem.id, problem.prompt) for problem in training.problems}
    for field, found in held_out.items():
        if found is None:
            continue
        problems = found.problems
        if twice := [problem for problem in problems if (problem.id, problem.prompt) in known]:
            raise ValueError(
                f"{len(twice)} of {len(problems)} {found.part} problems are training problems too, "
                f"such as {twice[0].label}; name others in config.evaluation.{field}, by `split`, "
                "or by `path` or `parts` where the source has no splits"
            )


def check_memory(checked: CheckedStage, workdir: Path, *, trained: bool) -> None:
    """Compiles a stage's programs and logs whether they fit the devices; all hosts must call.

    Of a stage that has only to be measured the evaluation alone. Left out are rows that rollouts
    give: they may still have to be collected.

    Args:
      trained: whether the policy that it begins with is another one than the base model.

    Raises:
      MemoryShortError: they do not fit.
    """
    programs, settings = checked.programs, checked.programs.settings
    held_out, tasks = checked.evaluation, checked.training.tasks
    calls = step_programs.evaluation_calls(programs, held_out.tasks, len(held_out.problems))
    finished = (workdir / settings.name / "checkpoints" / str(settings.steps)).exists()
    finished = processes.broadcast_from_first(finished)
    if settings.program == "collect":
        calls = step_programs.collect_calls(programs, tasks, trained=trained)
    elif settings.program == "rl" and not finished:
        calls = step_programs.calls(programs, tasks) + calls
    elif checked.examples is not None and dict(settings.examples)["source"] != "rollouts":
        rows = [] if finished else [checked.examples(0)]
        calls += [step_programs.supervised_call(programs, one) for one in rows]
    with Compilations() as compilations:
        found = memory.check(programs, calls)
        processes.log(f"[{settings.name}] {found}; {compilations.take().describe()}")


def select_and_log(
    programs: StagePrograms, spec: ProblemSetSpec, workdir: Path, name: str = ""
) -> ProblemSet:
    """Loads and checks one set of problems and logs its counts; raises as `select` does.

    Args:
      name: of a set of evaluation.sets.
    """
    settings = programs.settings
    if name:
        spec = dataclasses.replace(spec, part=f"evaluation ({name})")
    progress = settings.log.progress and processes.is_first()
    problems = select(spec, programs.chat, settings.grading, workdir, progress=progress)
    processes.log(f"[{settings.name}] {problems.describe()}")
    return problems


def state_bytes(programs: StagePrograms) -> int:
    """Bytes of the arrays in one checkpoint of a stage."""
    leaves = jax.tree.leaves(programs.abstract_state())
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


TOKEN_BYTES = 14  # of the columns of data.store.SCHEMA, before compression


def rollout_bytes(programs: StagePrograms, training: ProblemSet) -> int:
    """The most bytes that a stage's kept rollouts take on the disk, uncompressed."""
    settings, kept = programs.settings, programs.settings.log
    rows = settings.batch * settings.sampling.group_size
    count = rows if kept.rollouts < 0 else min(rows, kept.rollouts)
    steps = -(-settings.steps // kept.rollouts_every)
    if settings.program == "supervised":
        return 0
    encoder = programs.encoder(settings.plan, settings.sampling.prompt_limit, training.tasks)
    return steps * count * encoder.row_length(settings.sampling.row_limit) * TOKEN_BYTES


def check_disk_space(checked: Sequence[CheckedStage], workdir: Path) -> None:
    """Checks that the disk has space for the checkpoints still to be written.

    What rollouts may take at most is told where it matters, and refuses nothing.

    Raises:
      StorageError: it has not; the message gives the free and the needed space.
    """
    need, stages = 0, [stage.programs for stage in checked]
    for programs in stages:
        settings = programs.settings
        if settings.program == "collect":
            continue
        existing = len(list((workdir / settings.name / "checkpoints").glob("[0-9]*")))
        total = -(-settings.steps // settings.checkpoint.every)
        # On disk at a time: the latest ones, the best, and the one being written.
        most = min(settings.checkpoint.keep + 2, total)
        need += state_bytes(programs) * max(0, most - existing)
    free = shutil.disk_usage(workdir).free
    rollouts = sum(rollout_bytes(stage.programs, stage.training) for stage in checked)
    if rollouts > free / 10:
        processes.log(
            f"rollouts will take up to {rollouts / GB:.1f} GB before compression, of "
            f"{free / GB:.1f} GB free; config.log.rollouts and rollouts_every keep fewer"
        )
    if need > free:
        names = ", ".join(programs.settings.name for programs in stages)
        raise StorageError(
            f"--workdir is {workdir} with {free / GB:.1f} GB free, but the checkpoints of {names} "
            f"take up to {need / GB:.1f} GB at a time; make room, lower config.checkpoint.keep or "
            "choose another --workdir"
        )


def try_row(
    programs: StagePrograms, evaluation: ProblemSet, reference: Params, grader: Grader
) -> float:
    """Samples, grades and scores a few tokens of evaluation problems, one row per device shard.

    The evaluation runs after the last step, so its faults would show last. Training problems
    need no trial: the first step is one.

    Returns:
      Mean absolute difference of the sampler's and the scorer's logprobs, in nats per token.

    Raises:
      ValueError: logprobs are not finite.
    """
    settings = programs.settings
    short = dataclasses.replace(
        settings.sampling,
        group_size=1,
        second_attempts=1,
        decode_segments=1,
        row_sizes=1,
        draft_tokens=0,
        temperature=0.0,
        row_limit=0,
    )
    plan = settings.measured_plan
    plan = dataclasses.replace(
        plan,
        limits=tuple(
            min(TRIAL_TOKENS, limit) if source == "sampled" else limit
            for source, limit in zip(plan.sources, plan.limits, strict=True)
        ),
    )
    one_part = dataclasses.replace(settings.learner, microbatches=1, minibatches=1)
    learner = dataclasses.replace(programs.learner, max_tokens=plan.drawn_tokens, config=one_part)
    score = partial(score_episodes, learner)
    rows = sharding.rows(programs.mesh)
    scorer = jax.jit(score, in_shardings=(programs.model_shardings, rows), out_shardings=rows)
    trial = dataclasses.replace(
        programs.rollout_programs(evaluation.tasks),
        encoder=programs.encoder(plan, evaluation.prompt_limit, evaluation.tasks),
        sample=programs.sample(short, plan).by_turn,
        score=Program(scorer, programs.mesh),
    )
    draws = np.asarray(sharding.own_rows(programs.mesh, sharding.row_shards(programs.mesh)))
    rollout = collect_rollout(
        trial,
        grader,
        params=reference,
        reference=reference,
        key=run_key(settings.evaluation.seed, "evaluate"),
        draws=draws,
        problems=[evaluation.problems[draw % len(evaluation.problems)] for draw in draws],
    )
    assert rollout.scores is not None, "the trial's programs score"
    mismatch = rollout.local.logprobs - sharding.local_rows(rollout.scores.logprobs)
    local_mean = np.abs(mismatch[rollout.local.sampled]).mean(keepdims=True)
    mean = float(processes.all_gather(local_mean).mean())
    if not math.isfinite(mean):
        raise ValueError(
            f"weights.source is {settings.weights.source!r}; a trial row's "
            "log-probabilities are not finite: the weights are damaged, or not of this model"
        )
    return mean
