"""Runs a chain of stages: base model -> Stage I -> Stage II, each in its own folder."""

import importlib.metadata
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from score_jax.data.stream import Stream
from score_jax.distributed import processes, sharding
from score_jax.distributed.signals import StopRequest, stop_on_signals
from score_jax.distributed.watchdog import Watchdog
from score_jax.model.weights import embedded, export
from score_jax.model.weights.stops import save_stops
from score_jax.records import Problem
from score_jax.report import page
from score_jax.report.json_files import read_json, write_json
from score_jax.stages import ask, evaluate, problem_sets
from score_jax.stages.build import StagePrograms, load_reference
from score_jax.stages.checkpoint import fingerprint
from score_jax.stages.handoff import (
    StageConfig,
    check_contents,
    check_folder,
    config_fields,
    describe_policy,
    describe_selection,
    describe_stale,
    draws_before,
    format_selection,
    is_finished,
    load_parent_policy,
    load_policy,
    open_checkpoints,
    selected_step,
)
from score_jax.stages.log import Log
from score_jax.stages.preflight import (
    CheckedStage,
    check_disk_space,
    check_stage,
    select_and_log,
    try_row,
)
from score_jax.stages.problem_sets import ProblemSet
from score_jax.stages.protocol import digest
from score_jax.stages.settings import Settings
from score_jax.stages.train import StageRun, rl_step, sft_step, start_state
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
    """Trains, evaluates, reports, exports or asks."""
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
            checked = check_stages(stages, workdir, watchdog)
            counts = {name: ready.counts() for name, ready in checked.items()}
            if processes.is_first():
                write_json(workdir / "run.json", record | {"problems": counts})
            for place, stage in enumerate(stages):
                parent = stages[place - 1] if place else None
                ready = checked.get(stage.settings.name)
                train_stage(stage, parent, ready, workdir, request, watchdog)
        else:
            evaluate_stage(last, stages, workdir)
    if last.settings.program == "rl" and processes.is_first():
        print(f"report: {page.write_report(workdir)}")
    processes.barrier()  # none leaves before the first has written everything


def describe_run(stages: list[StageConfig], config: str, command: str) -> dict[str, Any]:
    """What run.json records."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    git = shutil.which("git")
    commit = ""
    if git:
        here = Path(__file__).parent
        asked = subprocess.run(
            [git, "-C", str(here), "describe", "--always", "--dirty"],
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        commit = asked.stdout.strip()
    return {
        "stages": [stage.settings.name for stage in stages],
        "config": config,
        "command": command,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "processes": processes.process_count(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "commit": commit,
    }


def check_stages(
    stages: list[StageConfig], workdir: Path, watchdog: Watchdog
) -> dict[str, CheckedStage]:
    """The preflight of the stages that are not finished yet, by name, before any is trained."""
    checked: dict[str, CheckedStage] = {}
    for stage in stages:
        name = stage.settings.name
        watchdog.enter_phase(f"preflight of {name}")
        check_folder(stage, workdir / name)
        if not is_finished(stage, workdir / name):
            checked[name] = check_stage(stage.settings, workdir)
    check_disk_space([ready.programs for ready in checked.values()], workdir)
    return checked


def train_stage(
    stage: StageConfig,
    parent: StageConfig | None,
    checked: CheckedStage | None,
    workdir: Path,
    request: StopRequest,
    watchdog: Watchdog,
) -> None:
    """Brings one stage to its last step and its evaluation, from wherever it stands.

    Args:
      checked: by the preflight; None: the stage is finished.
    """
    settings = stage.settings
    folder = workdir / settings.name
    watchdog.enter_phase(f"start of {settings.name}")
    if parent is not None and (note := describe_stale(parent, folder, workdir)):
        processes.log(f"[{settings.name}] {note}")
    if checked is None:
        processes.log(f"[{settings.name}] already in {folder}")
        return
    processes.log(f"[{settings.name}] {settings.steps} steps in {folder}")
    programs = checked.programs
    if programs.chat.more_stops:
        processes.log(f"[{settings.name}] {programs.chat.describe_stops()}")
    sharding.warm_up_collectives(programs.mesh)
    reference = load_reference(programs)
    beside = parent is not None and parent.settings.program == "rl"  # the same reference
    source = parent_folder(parent, workdir) if beside else None
    check_contents(programs, reference, checked.training.problems, folder, source)
    if processes.is_first():
        write_json(folder / "config.json", config_fields(stage.config))
        programs.chat.tokenizer.save(folder / "tokenizer")
        save_stops(folder / "tokenizer", programs.chat.stops)

    def initial() -> Params:
        return (
            programs.fresh(reference)
            if parent is None
            else load_parent_policy(parent, folder, workdir)
        )

    with open_checkpoints(settings, folder) as checkpoints, open_pool(programs) as pool:
        notes: list[str] = []
        state, progress = start_state(programs, checkpoints, initial, notes.append)
        if parent is None and not progress.position:
            watchdog.enter_phase(f"trial row of {settings.name}")
            mismatch = try_row(programs, checked.evaluation, reference, pool)
            processes.log(
                f"[{settings.name}] a trial row: sampler and scorer agree to {mismatch:.1g} nats"
            )
        with open_log(settings, folder, progress.position) as log:
            for note in notes:
                log.message(note)
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
                measure=open_validation(programs, checked.validation, reference, pool),
            ).run(sft_step if settings.program == "supervised" else rl_step(programs.sampler()))
        step = selected_step(settings, checkpoints)
        assert step is not None, f"{folder} has no final checkpoint after its last step"
        selection = describe_selection(settings, checkpoints, step)
        processes.log(f"[{settings.name}] {format_selection(selection)}")
        trained = checkpoints.restore_params(step, programs.abstract_state())
        params = programs.policy(trained, reference)
        if settings.program == "supervised":
            whole = sharding.whole(params)
            if processes.is_first():
                config = programs.decoder.config
                embedded.save(folder / "embedded", whole, config, programs.chat.tokenizer)
        before = parent_folder(parent, workdir)
        watchdog.enter_phase(f"evaluation of {settings.name}")
        evaluate_models(
            programs,
            checked.evaluation,
            folder,
            before,
            reference,
            params,
            step,
            pool,
            selection=selection,
        )


def open_stream(programs: StagePrograms, problems: Sequence[Problem], begin: int) -> Stream:
    """This host's share of the training problems, behind `begin` draws of earlier stages."""
    settings = programs.settings
    rows = sharding.own_rows(programs.mesh, settings.batch).tolist()
    return Stream(problems, batch=settings.batch, seed=settings.seed, rows=rows, begin=begin)


def open_log(settings: Settings, folder: Path, step: int) -> Log:
    """The stage's log files; only the first host writes."""
    return Log(
        folder,
        stage=settings.name,
        step=step,
        steps=settings.steps,
        write=processes.is_first(),
        tensorboard=settings.log.tensorboard,
        wandb=settings.log.wandb,
        progress=settings.log.progress,
    )


def open_validation(
    programs: StagePrograms, asked: ProblemSet | None, reference: Params, pool: Pool
) -> Callable[[Params, int], dict[str, float]] | None:
    """Greedy accuracies on validation problems of what is trained; None: not asked for."""
    if asked is None:
        return None

    def measure(trained: Params, step: int) -> dict[str, float]:
        policy = programs.policy(trained, reference)
        return evaluate.validate(programs, policy, asked.problems, pool, step=step)

    return measure


def parent_folder(parent: StageConfig | None, workdir: Path) -> Path | None:
    """The folder of the parent stage."""
    return None if parent is None else workdir / parent.settings.name


def open_pool(programs: StagePrograms) -> Pool:
    """Grading workers, tried out on the tasks' known pairs before they are trusted."""
    pool = problem_sets.open_pool(programs.settings.grading)
    for task in {task.name: task for task in (programs.task, programs.measured_task)}.values():
        pool.self_test(task, [])
    return pool


def evaluate_models(
    programs: StagePrograms,
    asked: ProblemSet,
    folder: Path,
    parent: Path | None,
    reference: Params,
    params: Params,
    step: int,
    pool: Pool,
    *,
    file: str = "evaluation.json",
    selection: dict[str, Any] | None = None,
    say: Callable[[str], None] = processes.log,
) -> None:
    """Measures base and trained policy on held-out problems; takes over the parent's numbers.

    What is measured is kept until all is: a run that was killed goes on.
    """
    problems, name, path = asked.problems, programs.settings.name, folder / file
    protocol, base = evaluate.protocol_of(programs, problems), int(fingerprint(reference))
    models = {} if parent is None else evaluate.known_models(parent, protocol, base)
    under_way = folder / "measuring"

    def measure(model: str, params: Params, step: int) -> dict[str, Any]:
        mark = digest([protocol["hash"], int(fingerprint(params)), step])
        return evaluate.measure_model(
            programs, params, problems, pool, step=step, name=model, kept=under_way / mark
        )

    if "base" not in models and programs.settings.program == "rl":
        models["base"] = measure("base", reference, 0)
    if params is reference and "base" in models:  # nothing was trained
        models[name] = models["base"]
    else:
        models[name] = measure(name, params, step)
    if processes.is_first():
        evaluate.write_evaluation(
            path,
            programs,
            models,
            step=step,
            protocol=protocol,
            reference=base,
            left_out=asked.left_out(),
            selection=selection,
        )
        shutil.rmtree(under_way, ignore_errors=True)
    processes.barrier()  # what reads it next may be another host
    for model in models:
        say(f"[{name}] {evaluate.summary_line(model, models[model])}")
    left = sum(map(len, asked.left_out().values()))
    on = f"{len(problems)} problems" + (f" ({left} left out)" if left else "")
    say(f"[{name}] evaluation of step {step} on {on}: {path}")


def evaluate_stage(stage: StageConfig, stages: list[StageConfig], workdir: Path) -> None:
    """Measures a stage's policy beside the base model, on any task."""
    loaded = load_policy(stage, workdir)
    folder = workdir / stage.settings.name
    config = read_json(folder / "config.json") or {}
    task = stage.settings.measured_task
    own = config.get("evaluation.task") or config.get("task", task)
    name = "evaluation" if own == task else f"evaluation_{task}"
    parent = parent_folder(stages[-2] if len(stages) > 1 else None, workdir)
    asked = select_and_log(loaded.programs, problem_sets.measured(stage.settings), workdir)
    with open_pool(loaded.programs) as pool:
        evaluate_models(
            loaded.programs,
            asked,
            folder,
            parent,
            loaded.reference,
            loaded.params,
            loaded.step,
            pool,
            file=f"{name}.json",
        )


def export_stage(stage: StageConfig, workdir: Path) -> None:
    """Writes a stage's policy, its adapter merged, as a Hugging Face folder."""
    loaded = load_policy(stage, workdir)
    folder = workdir / stage.settings.name / "export"
    export.export(loaded.params, loaded.programs.decoder.config, loaded.programs.chat, folder)
    processes.log(f"exported {describe_policy(loaded)}: {folder}")


def ask_stage(stage: StageConfig, workdir: Path, prompt: str) -> None:
    """Shows a stage's policy at work on one problem, or on what people type."""
    loaded = load_policy(stage, workdir)
    print(describe_policy(loaded))
    ask.interact(loaded.programs, loaded.params, prompt, seed=stage.settings.seed)
