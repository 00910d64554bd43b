"""Measures the policies of a stage on held-out problems, and writes evaluation.json.

Measurements of the parent by the same protocol are reused. Finished dialogues are saved in
the folder `measuring`, so that an interrupted evaluation can be resumed.
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from score_jax.distributed import processes, sharding
from score_jax.distributed.watchdog import Watchdog
from score_jax.model.weights import embedded
from score_jax.records import Task
from score_jax.report.json_files import read_json
from score_jax.stages import evaluate, problem_sets
from score_jax.stages.build import StagePrograms
from score_jax.stages.checkpoint import Checkpoints, fingerprint
from score_jax.stages.handoff import (
    StageConfig,
    describe_selection,
    format_selection,
    load_policy,
    selected_step,
)
from score_jax.stages.preflight import CheckedStage, select_and_log
from score_jax.stages.problem_sets import ProblemSet
from score_jax.stages.protocol import digest
from score_jax.stages.settings import Settings
from score_jax.tasks.grading.pool import Pool
from score_jax.types import Params


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
    if settings.weights.source == "random" and settings.program == "supervised":
        gathered = sharding.whole(params)
        if processes.is_first():
            config = programs.decoder.config
            embedded.save(folder / "embedded", gathered, config, programs.chat.tokenizer)
    watchdog.enter_phase(f"evaluation of {settings.name}")
    sets = settings.measured_sets
    # The others come first: evaluation.json says that a stage is finished.
    for own, asked, name in (
        *((sets[name], asked, f"evaluation_{name}") for name, asked in checked.more.items()),
        (settings, checked.evaluation, "evaluation"),
    ):
        evaluate_models(
            programs if own is settings else dataclasses.replace(programs, settings=own),
            asked,
            folder,
            parent,
            reference,
            params,
            step,
            pool,
            file=f"{name}.json",
            selection=selection,
        )


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

    Args:
      folder: of the stage.
      parent: folder of the parent stage; None: there is none.
      params: of the policy; `reference` itself if the stage has no checkpoint.
      step: of the policy's checkpoint.
      file: name of the results in `folder`.
      selection: from `handoff.describe_selection`.
    """
    problems, name, path = evaluation.problems, programs.settings.name, folder / file
    protocol = evaluate.evaluation_protocol(programs, evaluation)
    base_checksum = int(fingerprint(reference))
    models = (
        {} if parent is None else evaluate.read_measurements(parent / file, protocol, base_checksum)
    )
    partial = folder / "measuring"
    lost = evaluate.encoder_of(programs, evaluation).lost()
    for field, characters in lost.items():
        log(
            f"[{name}] {path.name}: {field} has {characters!r}, for which the tokenizer has no "
            "piece; the model reads an unknown token there: choose other words"
        )

    def measure(model: str, params: Params, step: int) -> dict[str, Any]:
        key = digest([protocol["hash"], int(fingerprint(params)), step])
        return evaluate.measure_model(
            programs, params, evaluation, pool, step=step, name=model, partial_folder=partial / key
        )

    if "base" not in models and programs.settings.has_base:
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
            lost=lost,
            selection=selection,
        )
        shutil.rmtree(partial, ignore_errors=True)
    processes.barrier()  # another host may be the next to read the file
    for model in models:
        log(f"[{name}] {evaluate.summary_line(model, models[model])}")
    left_out = sum(map(len, evaluation.left_out().values()))
    counts = f"{len(problems)} problems" + (f" ({left_out} left out)" if left_out else "")
    log(f"[{name}] evaluation of step {step} on {counts}: {path}")


def evaluate_stage(stage: StageConfig, workdir: Path) -> None:
    """Measures a stage's policy and the base model on the task of config.evaluation.

    Results on another task than that of the stage's config.json go to evaluation_<task>.json,
    those on further data sets to evaluation_<name>.json.
    """
    loaded, settings = load_policy(stage, workdir), stage.settings
    folder = workdir / settings.name
    config = read_json(folder / "config.json") or {}
    task = settings.measured_task
    recorded_task = config.get("evaluation.task") or config.get("task", task)
    name = "evaluation" if recorded_task == task else f"evaluation_{task}"
    parent = parent_folder(stage.parent, workdir)
    for file, part, own in (
        *((f"evaluation_{part}", part, own) for part, own in settings.measured_sets.items()),
        (name, "", settings),
    ):
        spec = problem_sets.evaluation_spec(own)
        evaluation = select_and_log(loaded.programs, spec, workdir, part)
        with open_pool(own, [evaluation.tasks]) as pool:
            evaluate_models(
                dataclasses.replace(loaded.programs, settings=own),
                evaluation,
                folder,
                parent,
                loaded.reference,
                loaded.params,
                loaded.step,
                pool,
                file=f"{file}.json",
            )


def parent_folder(parent: StageConfig | None, workdir: Path) -> Path | None:
    """The parent's folder in the workdir; None without a parent."""
    return None if parent is None else workdir / parent.settings.name


def open_pool(settings: Settings, tasks: Sequence[Mapping[str, Task]]) -> Pool:
    """Starts the grading workers and tests them on the tasks' examples with known verdicts."""
    pool = problem_sets.open_pool(settings.grading)
    for task in {task.name: task for part in tasks for task in part.values()}.values():
        pool.self_test(task, [])
    return pool
