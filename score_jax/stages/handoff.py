"""Reads and checks a stage's folder, and hands a parent's policy on to its child.

A stage hands its selected policy on. handoff.json records the parent, the step, what is
reset (the optimizer) and what is kept (the base model as the reference).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_jax.checks import check_recorded_names
from score_jax.data import store
from score_jax.distributed import processes, sharding
from score_jax.records import Problem
from score_jax.report.json_files import read_json, write_json
from score_jax.stages import identity, rollouts
from score_jax.stages.build import StagePrograms, build, load_reference
from score_jax.stages.checkpoint import Checkpoints, StorageError
from score_jax.stages.collect import missing_steps
from score_jax.stages.methods import named_stage
from score_jax.stages.settings import Settings
from score_jax.types import Params

# Fields that may differ when a run is resumed in the same folder.
MUTABLE_FIELDS = (
    "steps", "checkpoint", "evaluation", "log", "alarms", "profile", "grading", "parent",
    "export", "mesh", "mismatch_limit", "sampling.decode_segments", "sampling.row_sizes",
    "sampling.draft_tokens", "sampling.draft_yield",
)  # fmt: skip
# Fields that are paths. If the folder has an identity.json, contents are compared instead.
PATH_FIELDS = (
    "weights.source", "weights.adapter", "tokenizer.source", "data.path", "data.pass_rates",
    "data.first_attempts",
)  # fmt: skip
# Fields that decide which policy a checkpoint holds. Only these must agree to load it: a
# policy may be evaluated on any task.
POLICY_FIELDS = ("weights", "model", "lora", "tokenizer")


@dataclass(frozen=True)
class StageConfig:
    """One stage of a chain: its settings, and the config that they were parsed from."""

    settings: Settings
    config: ConfigDict
    parent: "StageConfig | None" = None  # that it starts from; None: the base model


def export_folder(workdir: Path, stage: str) -> Path:
    """Where a stage's whole model is exported to."""
    return workdir / stage / identity.EXPORT


def on_its_base(stage: StageConfig, workdir: Path) -> StageConfig:
    """The stage, and those that it starts from, with the folder of a base model of this run."""
    parent = None if stage.parent is None else on_its_base(stage.parent, workdir)
    settings = stage.settings
    if name := named_stage(settings.weights.source):
        # An adapter of the run's base model is in what was trained on it.
        source = str(export_folder(workdir, name))
        weights = replace(settings.weights, source=source, adapter="")
        settings = replace(settings, weights=weights)
    return replace(stage, settings=settings, parent=parent)


def on_present_base(stage: StageConfig, workdir: Path) -> StageConfig:
    """`on_its_base`, where the base model has to be there already.

    Raises:
      ValueError: it is another stage's, and not there.
    """
    name, found = named_stage(stage.settings.weights.source), on_its_base(stage, workdir)
    folder = found.settings.weights.source
    if name and not processes.broadcast_from_first(Path(folder).exists()):
        raise ValueError(
            f"config.weights.source is 'stage:{name}', and {folder} does not exist yet; run the "
            "same command with --mode=train"
        )
    return found


def open_checkpoints(settings: Settings, folder: Path) -> Checkpoints:
    """Opens a stage's checkpoints, ranked by the metric of `checkpoint.select`."""
    config = settings.checkpoint
    best_by = "validation" if config.select == "validation" else "reward"
    return Checkpoints(folder / "checkpoints", keep=config.keep, best_by=best_by)


def selected_step(settings: Settings, checkpoints: Checkpoints) -> int | None:
    """The step of the checkpoint that a stage hands on; None while it is unfinished.

    Raises:
      ValueError: no checkpoint has the metric that `checkpoint.select` needs.
    """
    steps = checkpoints.steps()
    if not steps or steps[-1] < settings.steps:
        return None
    if settings.selects == "last":
        return steps[-1]
    best = checkpoints.best()
    if best is None:
        raise ValueError(
            f"checkpoint.select is {settings.checkpoint.select!r}, but {checkpoints.folder} was "
            "written without that metric; set 'last', or the value that the stage was begun with"
        )
    return best


def describe_selection(settings: Settings, checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    """How a stage's checkpoint was selected, as handoff.json and evaluation.json store it."""
    extra = checkpoints.extra(checkpoints.steps()[-1])
    return {
        "by": settings.selects,
        "step": step,
        "score": checkpoints.score(step),
        "candidates": extra["candidates"],
        "window": extra["window"],
    }


def format_selection(selection: dict[str, Any]) -> str:
    """Formats `describe_selection` as one line."""
    if selection["by"] == "last":
        return f"step {selection['step']}, the last"
    number = f"{selection['score']:.4f}, the best of {selection['candidates']}"
    if selection["by"] == "validation":
        return f"step {selection['step']} by validation accuracy {number}"
    over = f"over {selection['window']} steps"
    return f"step {selection['step']} by training reward {over} {number}"


def check_folder(stage: StageConfig, folder: Path, *, policy_only: bool = False) -> None:
    """Compares a config with the config.json of a folder that a stage has begun.

    Args:
      policy_only: compare only POLICY_FIELDS, instead of all but MUTABLE_FIELDS.

    Raises:
      ValueError: a field differs, or has been renamed since the folder was begun.
    """
    recorded = read_json(folder / "config.json")
    if recorded is None or not has_begun(stage.settings, folder):
        return
    check_recorded_names(recorded, folder / "config.json")
    current = config_fields(stage.config)
    if (folder / identity.FILE).exists():
        recorded, current = without_path_fields(recorded), without_path_fields(current)
    for name in sorted(set(recorded) | set(current)):
        section = name.split(".")[0]
        may_differ = (
            section not in POLICY_FIELDS
            if policy_only
            else section in MUTABLE_FIELDS or name in MUTABLE_FIELDS
        )
        if may_differ or recorded.get(name) == current.get(name):
            continue
        if name not in recorded:
            raise ValueError(
                f"config.{name} is no field of {folder}, which an earlier version of score_jax "
                "has begun; choose another --workdir, or continue that run with that version"
            )
        raise ValueError(
            f"config.{name} is {current.get(name)}, but {folder} was begun with "
            f"{recorded.get(name)}; choose another --workdir, or set the field back"
        )


def has_checkpoint(folder: Path) -> bool:
    """Whether a stage's folder has a checkpoint to resume from."""
    return any((folder / "checkpoints").glob("[0-9]*"))


def has_begun(settings: Settings, folder: Path) -> bool:
    """Whether a stage's folder has what the same stage must go on from."""
    collected = settings.program == "collect" and bool(store.steps(folder / rollouts.NAME))
    return collected or has_checkpoint(folder)


def without_path_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Drops PATH_FIELDS from a flat config, also from the entries of `data.parts`."""
    others = {name: value for name, value in fields.items() if name not in PATH_FIELDS}
    part_paths = {name.removeprefix("data.") for name in PATH_FIELDS}
    if others.get("data.parts"):
        others["data.parts"] = [
            {name: value for name, value in part.items() if name not in part_paths}
            for part in others["data.parts"]
        ]
    return others


def check_contents(
    programs: StagePrograms,
    reference: Params,
    problems: Sequence[Problem],
    folder: Path,
    parent_folder: Path | None,
) -> None:
    """Compares a stage's inputs with its identity.json, then writes that file.

    Args:
      problems: of training.
      parent_folder: of a parent trained by RL, which must have the same reference; None:
        there is none to compare with.

    Raises:
      ValueError: weights, shape, tokenizer, stop ids or problems differ from those the stage
        was begun with, or between hosts.
    """
    current = identity.fingerprints(programs, reference, problems)
    policy = {part: current[part] for part in identity.POLICY_PARTS}
    if parent_folder is not None:
        identity.check_fingerprints(policy, parent_folder, programs.settings)
    if processes.broadcast_from_first(has_begun(programs.settings, folder)):
        identity.check_fingerprints(current, folder, programs.settings)
    identity.record(folder, current, programs.settings)


def config_fields(config: ConfigDict) -> dict[str, Any]:
    """Flattens a config to JSON values by dotted path, as config.json stores it."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, ConfigDict | dict):
            for name, part in value.items():
                visit(f"{prefix}{name}.", part)
        else:
            flat[prefix[:-1]] = list(value) if isinstance(value, tuple) else value

    visit("", config)
    return flat


def is_finished(stage: StageConfig, folder: Path) -> bool:
    """Whether a stage is trained, and evaluated at its selected checkpoint; all hosts must call."""
    if stage.settings.program == "collect":
        return not missing_steps(folder, stage.settings)
    evaluation = read_json(folder / "evaluation.json")
    evaluated = evaluation is not None and (folder / "checkpoints").exists()
    if not processes.broadcast_from_first(evaluated):
        return False
    with open_checkpoints(stage.settings, folder) as checkpoints:
        step = selected_step(stage.settings, checkpoints)
    return processes.broadcast_from_first(evaluation is not None and step == evaluation["step"])


def load_parent_policy(parent: StageConfig, folder: Path, workdir: Path) -> Params:
    """Loads the parent's selected policy and writes handoff.json to the child's `folder`.

    The child's stream of problems starts after the parent's last draw, even if an earlier
    checkpoint of the parent was selected.

    Raises:
      StorageError: the parent has no finished checkpoint.
    """
    source = workdir / parent.settings.name
    with open_checkpoints(parent.settings, source) as checkpoints:
        step = selected_step(parent.settings, checkpoints)
        if step is None:
            raise StorageError(
                f"{source} has no finished checkpoint; run {parent.settings.name} first"
            )
        # The parent's programs: its optimizer state may differ in shape from the child's.
        params = checkpoints.restore_params(step, build(parent.settings).abstract_state())
        selection = describe_selection(parent.settings, checkpoints, step)
        checksum = checkpoints.extra(step)["fingerprint"]
        last = checkpoints.steps()[-1]
        # Before there were redraws a step drew one batch.
        batches = checkpoints.extra(last).get("batches", last)
    drawn = batches * parent.settings.batch if parent.settings.program == "rl" else 0
    record = {
        "parent": parent.settings.name,
        "step": step,
        "checksum": checksum,
        "draws": draws_before(source) + drawn,
        "metrics": {
            "validation_accuracy" if selection["by"] == "validation" else "training_reward": (
                selection["score"]
            )
        },
        "selection": selection,
        "reset": ["optimizer", "step", "baseline"],
        "kept": ["reference: the base model, as in the parent"],
    }
    if processes.is_first():
        write_json(folder / "handoff.json", record)
    return params


@dataclass(frozen=True, kw_only=True)
class LoadedPolicy:
    """The policy of a stage in a workdir, with its programs."""

    programs: StagePrograms
    reference: Params
    params: Params  # of the whole model, with an adapter merged; the reference if step is 0
    trained: Params | None  # what the checkpoint holds, `params` or an adapter; None: it has none
    step: int  # of the checkpoint; 0: the stage has none


def load_policy(stage: StageConfig, workdir: Path) -> LoadedPolicy:
    """Loads a stage's selected checkpoint; unfinished, its newest; without any, the base model.

    Raises:
      ValueError: config or base model differ from those that the stage was trained with, or the
        base model is another stage's that is not trained.
      StorageError: the checkpoint can't be read.
    """
    stage = on_present_base(stage, workdir)
    settings = stage.settings
    folder = workdir / settings.name
    check_folder(stage, folder, policy_only=True)
    programs = build(settings)
    sharding.warm_up_collectives(programs.mesh)
    reference = params = load_reference(programs)
    trained = None
    if processes.broadcast_from_first(has_checkpoint(folder)):
        identity.check_fingerprints(
            identity.policy_fingerprints(programs, reference), folder, settings
        )
    step = 0
    if (folder / "checkpoints").exists():
        with open_checkpoints(settings, folder) as checkpoints:
            step = selected_step(settings, checkpoints) or max(checkpoints.steps(), default=0)
            if step:
                trained = checkpoints.restore_params(step, programs.abstract_state())
                params = programs.policy(trained, reference)
    return LoadedPolicy(
        programs=programs, reference=reference, params=params, trained=trained, step=step
    )


def describe_policy(loaded: LoadedPolicy) -> str:
    """Names the loaded model in a line for the terminal."""
    settings = loaded.programs.settings
    if loaded.step:
        return f"{settings.name} at step {loaded.step}"
    return f"the base model {settings.weights.source} ({settings.name} has no checkpoint)"


def draws_before(folder: Path) -> int:
    """Problems drawn by all earlier stages, where this stage's stream begins; 0: no hand-off."""
    record = processes.broadcast_from_first(read_json(folder / "handoff.json"))
    return record["draws"] if record else 0


def describe_stale(parent: StageConfig, folder: Path, workdir: Path) -> str:
    """A note if a stage began from a policy that its parent no longer hands on, else ""."""
    record = processes.broadcast_from_first(read_json(folder / "handoff.json"))
    source = workdir / parent.settings.name
    if not record or not processes.broadcast_from_first((source / "checkpoints").exists()):
        return ""
    with open_checkpoints(parent.settings, source) as checkpoints:
        step = selected_step(parent.settings, checkpoints)
        checksum = None if step is None else checkpoints.extra(step)["fingerprint"]
    if checksum in (None, record["checksum"]):
        return ""
    return (
        f"stale: it began from step {record['step']} of {parent.settings.name}, which now hands on "
        f"another policy, that of step {step}; to begin from that, delete {folder}"
    )


def describe_other_base(stage: StageConfig, folder: Path) -> str:
    """A note if a stage was begun with another export of its base model's stage, else ""."""
    record = processes.broadcast_from_first(read_json(folder / identity.FILE))
    base = identity.exported_step(stage.settings.weights.source)
    begun = record and record["sources"].get("weights.step")
    if begun in (None, base):
        return ""
    return (
        f"stale: its base model {stage.settings.weights.source} was of step {begun}, and is of "
        f"step {base} now; to begin from that, delete {folder}"
    )
