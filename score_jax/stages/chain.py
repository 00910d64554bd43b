"""Runs a chain of stages (base model -> Stage I -> Stage II), each in a folder of the workdir."""

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
from score_jax.stages.checkpoint import Checkpoints, fingerprint
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
    """Runs one mode of the command line.

    Args:
      mode: "train", "evaluate", "report", "export" or "ask".
      stages: the chain, parents first; all modes but "train" act on the last stage.
      config: path of the last stage's config file, for run.json.
      command: the command line, for run.json.
      prompt: for mode "ask"; "": prompts are read from the terminal.
    """
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
            counts = {name: stage.counts() for name, stage in checked.items()}
            if processes.is_first():
                write_json(workdir / "run.json", record | {"problems": counts})
            for index, stage in enumerate(stages):
                parent = stages[index - 1] if index else None
                train_stage(
                    stage, parent, checked.get(stage.settings.name), workdir, request, watchdog
                )
        else:
            evaluate_stage(last, stages, workdir)
    if last.settings.program == "rl" and processes.is_first():
        print(f"report: {page.write_report(workdir)}")
    processes.barrier()  # no host may exit while the first is still writing


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


def check_stages(
    stages: list[StageConfig], workdir: Path, watchdog: Watchdog
) -> dict[str, CheckedStage]:
    """Runs the preflight of all unfinished stages; returns their programs and problems by name."""
    checked: dict[str, CheckedStage] = {}
    for stage in stages:
        name = stage.settings.name
        watchdog.enter_phase(f"preflight of {name}")
        check_folder(stage, workdir / name)
        if not is_finished(stage, workdir / name):
            checked[name] = check_stage(stage.settings, workdir)
    check_disk_space([stage.programs for stage in checked.values()], workdir)
    return checked


def train_stage(
    stage: StageConfig,
    parent: StageConfig | None,
    checked: CheckedStage | None,
    workdir: Path,
    request: StopRequest,
    watchdog: Watchdog,
) -> None:
    """Trains and evaluates one stage, from its newest checkpoint if it has one.

    Args:
      parent: the stage to start from; None: the base model.
      checked: from the preflight; None: the stage is finished.
    """
    settings = stage.settings
    folder = workdir / settings.name
    watchdog.enter_phase(f"start of {settings.name}")
    if parent is not None and (note := describe_stale(parent, folder, workdir)):
        processes.log(f"[{settings.name}] {note}")
    if checked is None:
        processes.log(f"[{settings.name}] already finished: {folder}")
        return
    processes.log(f"[{settings.name}] {settings.steps} steps in {folder}")
    programs = checked.programs
    if programs.chat.more_stops:
        processes.log(f"[{settings.name}] {programs.chat.describe_stops()}")
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

    with open_checkpoints(settings, folder) as checkpoints, open_pool(programs) as pool:
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
                measure=open_validation(programs, checked.validation, reference, pool),
            ).run(sft_step if settings.program == "supervised" else rl_step(programs.sampler()))
        evaluate_selected(
            checked,
            checkpoints,
            folder,
            parent_folder(parent, workdir),
            reference=reference,
            pool=pool,
            watchdog=watchdog,
        )


def write_config_and_tokenizer(stage: StageConfig, programs: StagePrograms, folder: Path) -> None:
    """Writes config.json, tokenizer and stop ids to the stage's folder, on the first host."""
    if processes.is_first():
        write_json(folder / "config.json", config_fields(stage.config))
        programs.chat.tokenizer.save(folder / "tokenizer")
        save_stops(folder / "tokenizer", programs.chat.stops)


def evaluate_selected(
    checked: CheckedStage,
    checkpoints: Checkpoints,
    folder: Path,
    parent: Path | None,
    *,
    reference: Params,
    pool: Pool,
    watchdog: Watchdog,
) -> None:
    """Evaluates a finished stage's selected checkpoint; a supervised stage also writes it out.

    Args:
      folder: of the stage.
      parent: folder of the parent stage; None: there is none.
    """
    programs, settings = checked.programs, checked.programs.settings
    step = selected_step(settings, checkpoints)
    assert step is not None, f"{folder} has no final checkpoint after its last step"
    selection = describe_selection(settings, checkpoints, step)
    processes.log(f"[{settings.name}] {format_selection(selection)}")
    trained = checkpoints.restore_params(step, programs.abstract_state())
    params = programs.policy(trained, reference)
    if settings.program == "supervised":
        gathered = sharding.whole(params)
        if processes.is_first():
            config = programs.decoder.config
            embedded.save(folder / "embedded", gathered, config, programs.chat.tokenizer)
    watchdog.enter_phase(f"evaluation of {settings.name}")
    evaluate_models(
        programs,
        checked.evaluation,
        folder,
        parent,
        reference,
        params,
        step,
        pool,
        selection=selection,
    )


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
        return evaluate.validate(programs, policy, validation.problems, pool, step=step)

    return measure


def parent_folder(parent: StageConfig | None, workdir: Path) -> Path | None:
    """The parent's folder in the workdir; None without a parent."""
    return None if parent is None else workdir / parent.settings.name


def open_pool(programs: StagePrograms) -> Pool:
    """Starts the grading workers and tests them on the tasks' examples with known verdicts."""
    pool = problem_sets.open_pool(programs.settings.grading)
    for task in {task.name: task for task in (programs.task, programs.measured_task)}.values():
        pool.self_test(task, [])
    return pool


def evaluate_models(
    programs: StagePrograms,
    evaluation: ProblemSet,
    folder: Path,
    parent: Path | None,
    reference: Params,
    params: Params,
    step: int,
    pool: Pool,
    *,
    file: str = "evaluation.json",
    selection: dict[str, Any] | None = None,
    log: Callable[[str], None] = processes.log,
) -> None:
    """Measures the base model and the policy on held-out problems and writes the results.

    Measurements of the parent by the same protocol are reused. Finished dialogues are saved
    in the folder `measuring`, so that an interrupted evaluation can be resumed.

    Args:
      folder: of the stage.
      parent: folder of the parent stage; None: there is none.
      params: of the policy; `reference` itself if the stage has no checkpoint.
      step: of the policy's checkpoint.
      file: name of the results in `folder`.
      selection: from `handoff.describe_selection`.
    """
    problems, name, path = evaluation.problems, programs.settings.name, folder / file
    protocol = evaluate.evaluation_protocol(programs, problems)
    base_checksum = int(fingerprint(reference))
    models = {} if parent is None else evaluate.read_measurements(parent, protocol, base_checksum)
    partial = folder / "measuring"

    def measure(model: str, params: Params, step: int) -> dict[str, Any]:
        key = digest([protocol["hash"], int(fingerprint(params)), step])
        return evaluate.measure_model(
            programs, params, problems, pool, step=step, name=model, partial_folder=partial / key
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
            reference=base_checksum,
            left_out=evaluation.left_out(),
            selection=selection,
        )
        shutil.rmtree(partial, ignore_errors=True)
    processes.barrier()  # another host may be the next to read the file
    for model in models:
        log(f"[{name}] {evaluate.summary_line(model, models[model])}")
    left_out = sum(map(len, evaluation.left_out().values()))
    counts = f"{len(problems)} problems" + (f" ({left_out} left out)" if left_out else "")
    log(f"[{name}] evaluation of step {step} on {counts}: {path}")


def evaluate_stage(stage: StageConfig, stages: list[StageConfig], workdir: Path) -> None:
    """Measures a stage's policy and the base model on the task of config.evaluation.

    Results on another task than that of the stage's config.json go to evaluation_<task>.json.
    """
    loaded = load_policy(stage, workdir)
    folder = workdir / stage.settings.name
    config = read_json(folder / "config.json") or {}
    task = stage.settings.measured_task
    recorded_task = config.get("evaluation.task") or config.get("task", task)
    name = "evaluation" if recorded_task == task else f"evaluation_{task}"
    parent = parent_folder(stages[-2] if len(stages) > 1 else None, workdir)
    spec = problem_sets.evaluation_spec(stage.settings)
    evaluation = select_and_log(loaded.programs, spec, workdir)
    with open_pool(loaded.programs) as pool:
        evaluate_models(
            loaded.programs,
            evaluation,
            folder,
            parent,
            loaded.reference,
            loaded.params,
            loaded.step,
            pool,
            file=f"{name}.json",
        )


def export_stage(stage: StageConfig, workdir: Path) -> None:
    """Writes a stage's policy, with an adapter merged, as a Hugging Face model folder."""
    loaded = load_policy(stage, workdir)
    folder = workdir / stage.settings.name / "export"
    export.export(loaded.params, loaded.programs.decoder.config, loaded.programs.chat, folder)
    processes.log(f"exported {describe_policy(loaded)}: {folder}")


def ask_stage(stage: StageConfig, workdir: Path, prompt: str) -> None:
    """Runs a stage's policy on `prompt`, or on prompts typed on the terminal if it is empty."""
    loaded = load_policy(stage, workdir)
    print(describe_policy(loaded))
    ask.interact(loaded.programs, loaded.params, prompt, seed=stage.settings.seed)
