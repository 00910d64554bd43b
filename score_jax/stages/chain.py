"""Runs a chain of stages (base model -> Stage I -> Stage II), each in a folder of the workdir."""

import dataclasses
import importlib.metadata
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from score_jax.data.stream import Stream
from score_jax.distributed import processes, sharding
from score_jax.distributed.signals import StopRequest, stop_on_signals
from score_jax.distributed.watchdog import Watchdog
from score_jax.model.weights.stops import save_stops
from score_jax.records import Problem
from score_jax.report import page
from score_jax.report.json_files import write_json
from score_jax.stages import ask, evaluate, rollouts
from score_jax.stages.build import StagePrograms, load_reference
from score_jax.stages.checkpoint import StorageError
from score_jax.stages.collect import collect
from score_jax.stages.compilation import Compilations
from score_jax.stages.export import check_exportable, export_base, export_stage
from score_jax.stages.handoff import (
    StageConfig,
    check_contents,
    check_folder,
    config_fields,
    describe_other_base,
    describe_policy,
    describe_stale,
    draws_before,
    export_folder,
    has_checkpoint,
    is_finished,
    load_parent_policy,
    load_policy,
    on_its_base,
    on_present_base,
    open_checkpoints,
)
from score_jax.stages.log import Log
from score_jax.stages.measure import evaluate_selected, evaluate_stage, open_pool, parent_folder
from score_jax.stages.methods import named_stage
from score_jax.stages.preflight import (
    CheckedStage,
    check_disk_space,
    check_memory,
    check_stage,
    try_row,
)
from score_jax.stages.problem_sets import ProblemSet
from score_jax.stages.resolve import planned
from score_jax.stages.settings import Settings
from score_jax.stages.train import StageRun, StepFunction, rl_step, sft_step, start_state
from score_jax.tasks.grading.pool import Pool
from score_jax.types import Params


def run_mode(
    mode: str,
    stages: list[StageConfig],
    workdir: Path,
    *,
    config: str,
    command: str,
    prompt: str = "",
    watchdog: Watchdog | None = None,
) -> None:
    """Runs one mode of the command line.

    Args:
      mode: "train", "evaluate", "report", "export" or "ask".
      stages: the chain, parents first; all modes but "train" act on the last stage.
      config: path of the last stage's config file, for run.json.
      command: the command line, for run.json.
      prompt: for mode "ask"; "": prompts are read from the terminal.

    Raises:
      ValueError: a stage that is to be trained is prompting alone.
    """
    if mode == "train":
        check_trainable(stages)
    if mode == "report":
        print(f"report: {page.write_report(workdir)}")
        return
    if mode == "export":
        export_stage(stages[-1], workdir)
        return
    if mode == "ask":
        ask_stage(stages[-1], workdir, prompt)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    record = describe_run(stages, config, command)
    if processes.is_first():
        write_json(workdir / "run.json", record)
    last = stages[-1]
    watchdog = watchdog or Watchdog()
    with stop_on_signals() as request:
        if mode == "train":
            train_chain(stages, workdir, record, request, watchdog)
        elif mode == "collect":
            stage = collecting(last, workdir)
            checked = check_stages([stage], workdir, watchdog)
            run_stage(stage, checked.get(stage.settings.name), workdir, request, watchdog)
        else:
            evaluate_stage(last, workdir)
    if mode != "collect" and last.settings.has_base and processes.is_first():
        print(f"report: {page.write_report(workdir)}")
    processes.barrier()  # no host may exit while the first is still writing


def check_trainable(stages: Sequence[StageConfig]) -> None:
    """Raises ValueError if a stage is prompting alone, before anything is written for it."""
    for settings in (stage.settings for stage in stages):
        if settings.program == "prompting":
            raise ValueError(
                f"config.program of {settings.name!r} is 'prompting': it has nothing to train; "
                "measure it with --mode=evaluate"
            )


def describe_run(stages: list[StageConfig], config: str, command: str) -> dict[str, Any]:
    """Returns what run.json stores: stages, command, versions, devices and the git commit."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    git = shutil.which("git")
    commit = ""
    if git:
        result = subprocess.run(
            [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        commit = result.stdout.strip()
    return {
        "stages": [stage.settings.name for stage in stages],
        "config": config,
        "command": command,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "processes": processes.process_count(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "commit": commit,
    }


def train_chain(
    stages: Sequence[StageConfig],
    workdir: Path,
    record: Mapping[str, Any],
    request: StopRequest,
    watchdog: Watchdog,
    *,
    measured: Path | None = None,
) -> None:
    """Runs all stages in their order, those that are finished already only in name.

    Args:
      record: of `describe_run`, for run.json.
      measured: a folder whose evaluation.json may have the base model's measurements.
    """
    given = stages
    stages = [with_collected(on_its_base(stage, workdir), workdir) for stage in given]
    waiting, counts = stages, {}
    checked: dict[str, CheckedStage] = {}
    for number, stage in enumerate(stages):
        left = stages[number:]  # a stage that waits for one of them is checked later
        ready = [other for other in waiting if not waits(other, left, workdir)]
        waiting = [other for other in waiting if other not in ready]
        is_base = any(is_base_of(stage, other, workdir) for other in left)
        found = check_stages(ready, workdir, watchdog)
        checked |= found
        counts |= {name: one.counts() for name, one in found.items()}
        if ready and processes.is_first():
            write_json(workdir / "run.json", {**record, "problems": counts})
        own = checked.pop(stage.settings.name, None)
        if own is not None and is_base:
            check_exportable(own.programs)
        if number == 0:
            check_ahead(given, workdir, watchdog)
        run_stage(stage, own, workdir, request, watchdog, measured=measured)
        if is_base:
            export_base(stage, workdir)


def check_ahead(stages: Sequence[StageConfig], workdir: Path, watchdog: Watchdog) -> None:
    """Checks problems and memory of stages whose base model this run still has to train.

    By the weights which that training begins with: they have the same shape. What such a stage
    lacks is told before the training that it waits for, which may take long.
    """
    for number, stage in enumerate(stages):
        base = named_stage(stage.settings.weights.source)
        if not base or named_stage(dict(stage.settings.data).get("first_attempts", "")):
            continue
        if not processes.broadcast_from_first(export_folder(workdir, base).exists()):
            settings = planned(stages[: number + 1])
            watchdog.enter_phase(f"preflight of {settings.name}")
            check_memory(check_stage(settings, workdir), workdir, trained=stage.parent is not None)


def with_collected(stage: StageConfig, workdir: Path) -> StageConfig:
    """The stage with the path of first attempts that another stage of the run collects."""
    data = dict(stage.settings.data)
    if not (name := named_stage(data.get("first_attempts", ""))):
        return stage
    data["first_attempts"] = str(workdir / name / rollouts.NAME)
    settings = dataclasses.replace(stage.settings, data=tuple(sorted(data.items())))
    return dataclasses.replace(stage, settings=settings)


def waits(stage: StageConfig, stages: Sequence[StageConfig], workdir: Path) -> bool:
    """Whether a stage needs what one of `stages` still has to make: first attempts, or weights.

    Weights are exported after their stage is finished, so that they count as still to be made.
    """
    path = dict(stage.settings.data).get("first_attempts", "")
    return any(
        is_base_of(source, stage, workdir)
        or (
            str(workdir / source.settings.name / rollouts.NAME) == path
            and not is_finished(source, workdir / source.settings.name)
        )
        for source in stages
    )


def is_base_of(source: StageConfig, stage: StageConfig, workdir: Path) -> bool:
    """Whether what a stage has trained is another one's base model."""
    return stage.settings.weights.source == str(export_folder(workdir, source.settings.name))


def check_stages(
    stages: Sequence[StageConfig], workdir: Path, watchdog: Watchdog
) -> dict[str, CheckedStage]:
    """Runs the preflight of all unfinished stages; returns their programs and problems by name."""
    checked: dict[str, CheckedStage] = {}
    for stage in stages:
        name = stage.settings.name
        watchdog.enter_phase(f"preflight of {name}")
        check_folder(stage, workdir / name)
        if not is_finished(stage, workdir / name):
            checked[name] = check_stage(stage.settings, workdir)
    check_disk_space(list(checked.values()), workdir)
    for stage in stages:
        if ready := checked.get(stage.settings.name):
            watchdog.enter_phase(f"compiling of {stage.settings.name}")
            check_memory(ready, workdir, trained=stage.parent is not None)
    return checked


def collecting(stage: StageConfig, workdir: Path) -> StageConfig:
    """The stage that keeps rollouts of another one's policy, for --mode=collect."""
    stage = on_present_base(stage, workdir)
    name = f"{stage.settings.name}_collected"
    sampling = dataclasses.replace(stage.settings.sampling, redraws=0)
    settings = dataclasses.replace(stage.settings, name=name, program="collect", sampling=sampling)
    trained = processes.broadcast_from_first(has_checkpoint(workdir / stage.settings.name))
    policy = stage.settings.name if trained else f"the base model ({stage.settings.name} is none)"
    processes.log(f"[{name}] collects from {policy}")
    return StageConfig(settings=settings, config=stage.config, parent=stage if trained else None)


def run_stage(
    stage: StageConfig,
    checked: CheckedStage | None,
    workdir: Path,
    request: StopRequest,
    watchdog: Watchdog,
    *,
    measured: Path | None = None,
) -> None:
    """Runs a stage by its program, unless it is finished.

    Args:
      checked: from the preflight; None: the stage is finished.
      measured: of `train_chain`.

    Raises:
      StorageError: a part of a collection was drawn by a policy that the parent no longer hands
        on.
    """
    settings, folder = stage.settings, workdir / stage.settings.name
    watchdog.enter_phase(f"start of {settings.name}")
    collects = settings.program == "collect"
    if stage.parent is not None and (note := describe_stale(stage.parent, folder, workdir)):
        if collects and checked:  # else the rollouts of two policies would stand in one collection
            raise StorageError(f"{folder} is {note}")
        processes.log(f"[{settings.name}] {note}")
    if checked is None:
        processes.log(f"[{settings.name}] already finished: {folder}")
        if note := describe_other_base(stage, folder):
            processes.log(f"[{settings.name}] {note}")
        return
    if collects:
        collect_stage(stage, checked, workdir, request, watchdog)
        return
    with Compilations() as compilations:
        train_stage(stage, checked, workdir, request, watchdog, compilations, measured=measured)


def collect_stage(
    stage: StageConfig,
    checked: CheckedStage,
    workdir: Path,
    request: StopRequest,
    watchdog: Watchdog,
) -> None:
    """Keeps graded rollouts of the policy that a stage starts from; nothing is learnt."""
    settings, folder = stage.settings, workdir / stage.settings.name
    programs = checked.programs
    sharding.warm_up_collectives(programs.mesh)
    reference = load_reference(programs)
    check_contents(programs, reference, checked.training.problems, folder, None)
    write_config_and_tokenizer(stage, programs, folder)
    params = reference
    if stage.parent is not None:
        trained = load_parent_policy(stage.parent, folder, workdir)
        params = programs.policy(trained, reference)
    stream = open_stream(programs, checked.training.problems, 0)
    with open_pool(settings, [checked.training.tasks]) as pool:
        collect(
            programs,
            programs.rollout_programs(checked.training.tasks),
            stream,
            pool,
            params=params,
            folder=folder,
            request=request,
            watchdog=watchdog,
        )


def train_stage(
    stage: StageConfig,
    checked: CheckedStage,
    workdir: Path,
    request: StopRequest,
    watchdog: Watchdog,
    compilations: Compilations,
    *,
    measured: Path | None = None,
) -> None:
    """Trains and evaluates one stage, from its newest checkpoint if it has one."""
    settings, parent = stage.settings, stage.parent
    folder = workdir / settings.name
    processes.log(f"[{settings.name}] {settings.steps} steps in {folder}")
    programs = checked.programs
    if programs.chat.more_stops:
        processes.log(f"[{settings.name}] {programs.chat.describe_stops()}")
    if programs.chat.format.thinking:
        processes.log(
            f"[{settings.name}] turns think before they answer: both share the tokens of a turn, "
            f"{', '.join(map(str, settings.plan.limits))}; a turn that is cut while it thinks has "
            "no answer (truncated/turn1, verdict/unparsable)"
        )
    sharding.warm_up_collectives(programs.mesh)
    reference = load_reference(programs)
    # A stage and its parent have the same reference if the parent was trained by RL.
    has_same_reference = parent is not None and parent.settings.program == "rl"
    same_reference_folder = parent_folder(parent, workdir) if has_same_reference else None
    check_contents(programs, reference, checked.training.problems, folder, same_reference_folder)
    write_config_and_tokenizer(stage, programs, folder)

    def initial_params() -> Params:
        if parent is None:
            return programs.fresh(reference)
        return load_parent_policy(parent, folder, workdir)

    sets = [checked.training, checked.evaluation, *checked.more.values()]
    tasks = [asked.tasks for asked in sets]
    with open_checkpoints(settings, folder) as checkpoints, open_pool(settings, tasks) as pool:
        messages: list[str] = []  # the log opens later: it needs the step that is restored here
        state, progress = start_state(programs, checkpoints, initial_params, messages.append)
        if parent is None and not progress.position:
            watchdog.enter_phase(f"trial row of {settings.name}")
            mismatch = try_row(programs, checked.evaluation, reference, pool)
            processes.log(
                f"[{settings.name}] trial row: sampler and scorer differ by {mismatch:.1g} nats "
                "per token"
            )
        with open_log(settings, folder, progress.position) as log:
            for message in messages:
                log.message(message)
            StageRun(
                programs=programs,
                checkpoints=checkpoints,
                log=log,
                stream=open_stream(programs, checked.training.problems, draws_before(folder)),
                grader=pool,
                reference=reference,
                state=state,
                progress=progress,
                request=request,
                watchdog=watchdog,
                compilations=compilations,
                measure=open_validation(programs, checked.validation, reference, pool),
            ).run(step_function(checked))
        del state  # where no step was left, it was not given away: it would be held in measuring
        evaluate_selected(
            checked,
            checkpoints,
            folder,
            parent_folder(parent, workdir) or measured,
            reference=reference,
            pool=pool,
            watchdog=watchdog,
        )


def step_function(checked: CheckedStage) -> StepFunction:
    """The training step of a stage's program."""
    if checked.examples is not None:
        return sft_step(checked.examples)
    return rl_step(checked.programs.rollout_programs(checked.training.tasks))


def write_config_and_tokenizer(stage: StageConfig, programs: StagePrograms, folder: Path) -> None:
    """Writes config.json, tokenizer and stop ids to the stage's folder, on the first host."""
    if processes.is_first():
        write_json(folder / "config.json", config_fields(stage.config))
        programs.chat.tokenizer.save(folder / "tokenizer")
        save_stops(folder / "tokenizer", programs.chat.stops)


def open_stream(programs: StagePrograms, problems: Sequence[Problem], begin: int) -> Stream:
    """This host's rows of the stream of training problems, after the first `begin` draws."""
    settings = programs.settings
    rows = sharding.own_rows(programs.mesh, settings.batch).tolist()
    return Stream(problems, batch=settings.batch, seed=settings.seed, rows=rows, begin=begin)


def open_log(settings: Settings, folder: Path, step: int) -> Log:
    """Opens the stage's log after `step` finished steps; only the first host writes."""
    return Log(
        folder,
        stage=settings.name,
        step=step,
        steps=settings.steps,
        write=processes.is_first(),
        tensorboard=settings.log.tensorboard,
        wandb=settings.log.wandb,
        progress=settings.log.progress,
        # Where the run's end writes no page, none is left that looks unfinished.
        report_minutes=settings.log.report_minutes if settings.has_base else 0.0,
    )


def open_validation(
    programs: StagePrograms, validation: ProblemSet | None, reference: Params, pool: Pool
) -> Callable[[Params, int], dict[str, float]] | None:
    """Returns the function (trained parameters, step) -> greedy validation accuracies.

    None if `validation` is None, where training runs without it.
    """
    if validation is None:
        return None

    def measure(trained: Params, step: int) -> dict[str, float]:
        policy = programs.policy(trained, reference)
        return evaluate.validate(programs, policy, validation, pool, step=step)

    return measure


def ask_stage(stage: StageConfig, workdir: Path, prompt: str) -> None:
    """Runs a stage's policy on `prompt`, or on prompts typed on the terminal if it is empty."""
    loaded = load_policy(stage, workdir)
    print(describe_policy(loaded))
    ask.interact(loaded.programs, loaded.params, prompt, seed=stage.settings.seed)
