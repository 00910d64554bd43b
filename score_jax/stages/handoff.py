"""What a stage's folder says: begun with which config, finished where, handed on how.

A stage hands its best policy on. The hand-off is recorded: which parent, which step,
what was reset (the optimiser) and what was kept (the base model as the reference).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_jax.distributed import processes, sharding
from score_jax.records import Problem
from score_jax.report.json_files import read_json, write_json
from score_jax.stages import identity
from score_jax.stages.build import StagePrograms, build, load_reference
from score_jax.stages.checkpoint import Checkpoints, StorageError
from score_jax.stages.settings import Settings
from score_jax.types import Params

# Fields that may change between two runs in one folder without making it another run.
MUTABLE_FIELDS = (
    "steps", "checkpoint", "evaluation", "log", "profile", "grading", "parent", "mesh",
    "mismatch_limit", "sampling.decode_segments",
)  # fmt: skip
# Fields that say which policy a checkpoint holds; it may be tried on any task.
# Names of files: where contents are known, those are compared instead.
PATH_FIELDS = (
    "weights.source", "tokenizer.source", "data.path", "data.pass_rates", "data.first_attempts",
)  # fmt: skip
POLICY_FIELDS = ("weights", "model", "lora", "tokenizer")


@dataclass(frozen=True)
class StageConfig:
    """One stage of a chain, as settings and as the config they came from."""

    settings: Settings
    config: ConfigDict


def open_checkpoints(settings: Settings, folder: Path) -> Checkpoints:
    """The checkpoints of a stage."""
    config = settings.checkpoint
    best_by = "validation" if config.select == "validation" else "reward"
    return Checkpoints(folder / "checkpoints", keep=config.keep, best_by=best_by)


def selected_step(settings: Settings, checkpoints: Checkpoints) -> int | None:
    """The checkpoint that a finished stage hands on; None while it is unfinished.

    Raises:
      ValueError: none of them was judged as the settings ask for.
    """
    steps = checkpoints.steps()
    if not steps or steps[-1] < settings.steps:
        return None
    if settings.checkpoint.select == "last":
        return steps[-1]
    best = checkpoints.best()
    if best is None:
        raise ValueError(
            f"checkpoint.select is {settings.checkpoint.select!r}, but {checkpoints.folder} was "
            "written without the numbers for it; set 'last', or what the stage was begun with"
        )
    return best


def describe_selection(settings: Settings, checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    """How a stage's checkpoint was chosen, and among how many."""
    extra = checkpoints.extra(checkpoints.steps()[-1])
    return {
        "by": settings.checkpoint.select,
        "step": step,
        "score": checkpoints.score(step),
        "candidates": extra["candidates"],
        "window": extra["window"],
    }


def format_selection(selection: dict[str, Any]) -> str:
    """The choice of a checkpoint in one line."""
    if selection["by"] == "last":
        return f"step {selection['step']}, the last"
    number = f"{selection['score']:.4f}, the best of {selection['candidates']}"
    if selection["by"] == "validation":
        return f"step {selection['step']} by validation accuracy {number}"
    over = f"over {selection['window']} steps"
    return f"step {selection['step']} by training reward {over} {number}"


def check_folder(stage: StageConfig, folder: Path, *, policy_only: bool = False) -> None:
    """Refuses to go on in a folder that another config has begun.

    Args:
      policy_only: only the fields that say which policy it is must agree.

    Raises:
      ValueError: a field that shapes the run differs.
    """
    before = read_json(folder / "config.json")
    if before is None or not has_checkpoint(folder):
        return
    now = config_fields(stage.config)
    by_contents = (folder / identity.FILE).exists()
    if by_contents:
        before, now = without_path_fields(before), without_path_fields(now)
    for name in sorted(set(before) | set(now)):
        part = name.split(".")[0]
        free = (
            part not in POLICY_FIELDS
            if policy_only
            else part in MUTABLE_FIELDS or name in MUTABLE_FIELDS
        )
        if free or before.get(name) == now.get(name):
            continue
        raise ValueError(
            f"config.{name} is {now.get(name)}, but {folder} was begun with {before.get(name)}; "
            "choose another --workdir, or set the field back"
        )


def has_checkpoint(folder: Path) -> bool:
    """Whether a stage's folder holds a checkpoint that a run would go on from."""
    return any((folder / "checkpoints").glob("[0-9]*"))


def without_path_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """A flat config without the names of files, whose contents `identity` compares."""
    kept = {name: value for name, value in fields.items() if name not in PATH_FIELDS}
    names = {place.removeprefix("data.") for place in PATH_FIELDS}
    if kept.get("data.parts"):
        kept["data.parts"] = [
            {name: value for name, value in part.items() if name not in names}
            for part in kept["data.parts"]
        ]
    return kept


def check_contents(
    programs: StagePrograms,
    reference: Params,
    problems: Sequence[Problem],
    folder: Path,
    source: Path | None,
) -> None:
    """Refuses to go on with other contents than a stage was begun with; writes them down.

    Args:
      source: the folder of the parent that was trained by RL beside the same reference.

    Raises:
      ValueError: weights, tokenizer or problems are others; or the hosts' own differ.
    """
    found = identity.fingerprints(programs, reference, problems)
    policy = {part: found[part] for part in identity.POLICY_PARTS}
    if source is not None:
        identity.check_fingerprints(policy, source, programs.settings)
    if processes.broadcast_from_first(has_checkpoint(folder)):
        identity.check_fingerprints(found, folder, programs.settings)
    identity.record(folder, found, programs.settings)


def config_fields(config: ConfigDict) -> dict[str, Any]:
    """A config as one flat dictionary of JSON values."""
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
    """Whether a stage is trained and evaluated."""
    evaluation = read_json(folder / "evaluation.json")
    begun = evaluation is not None and (folder / "checkpoints").exists()
    if not processes.broadcast_from_first(begun):
        return False
    with open_checkpoints(stage.settings, folder) as checkpoints:
        step = selected_step(stage.settings, checkpoints)
    return processes.broadcast_from_first(evaluation is not None and step == evaluation["step"])


def load_parent_policy(parent: StageConfig, folder: Path, workdir: Path) -> Params:
    """The parent's selected policy; the hand-off is written down.

    The child's stream of problems goes on behind the last draw of the parent, whichever of
    the parent's checkpoints was selected.

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
        # The optimiser of the parent may have another shape: its own programs say which.
        params = checkpoints.restore_params(step, build(parent.settings).abstract_state())
        selection = describe_selection(parent.settings, checkpoints, step)
        checksum = checkpoints.extra(step)["fingerprint"]
        steps = checkpoints.steps()[-1]
    drawn = steps * parent.settings.batch if parent.settings.program == "rl" else 0
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
    """A stage's policy as the workdir holds it."""

    programs: StagePrograms
    reference: Params
    params: Params  # of the whole model; the reference's where there is no checkpoint
    step: int  # of the checkpoint; 0: there is none


def load_policy(stage: StageConfig, workdir: Path) -> LoadedPolicy:
    """The selected checkpoint of a stage, the newest of one under way, else the base model."""
    settings = stage.settings
    folder = workdir / settings.name
    check_folder(stage, folder, policy_only=True)
    programs = build(settings)
    sharding.warm_up_collectives(programs.mesh)
    reference = params = load_reference(programs)
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
    return LoadedPolicy(programs=programs, reference=reference, params=params, step=step)


def describe_policy(loaded: LoadedPolicy) -> str:
    """Which model was found, for people."""
    settings = loaded.programs.settings
    if loaded.step:
        return f"{settings.name} at step {loaded.step}"
    return f"the base model {settings.weights.source} ({settings.name} has no checkpoint)"


def draws_before(folder: Path) -> int:
    """Problems that the stages before this one have drawn: where its own stream begins."""
    record = processes.broadcast_from_first(read_json(folder / "handoff.json"))
    return record["draws"] if record else 0


def describe_stale(parent: StageConfig, folder: Path, workdir: Path) -> str:
    """Says that a stage began from a checkpoint that its parent no longer hands on; else ""."""
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
        f"another policy, that of step {step}; to train from that, delete {folder}"
    )
