"""Writes a stage's policy in the folders that other libraries open.

A stage's folder gets export/, the whole model for transformers and vLLM, and, if the stage
trains an adapter, adapter/, that alone for PEFT. Each has a model card.
"""

from pathlib import Path
from typing import Literal

from score_jax.distributed import processes
from score_jax.model.weights import export, load, peft
from score_jax.report import model_card
from score_jax.report.json_files import read_json, write_json
from score_jax.stages.handoff import (
    LoadedPolicy,
    StageConfig,
    describe_policy,
    export_folder,
    load_policy,
    open_checkpoints,
    selected_step,
)
from score_jax.tasks import registry
from score_jax.text import hub

RECORD = "export.json"  # beside the folder: which policy it holds


def export_base(stage: StageConfig, workdir: Path) -> None:
    """Exports a finished stage that is the base model of later ones, unless that is done."""
    folder = workdir / stage.settings.name
    with open_checkpoints(stage.settings, folder) as checkpoints:
        step = selected_step(stage.settings, checkpoints)
        assert step is not None, "the stage is finished"
        record = {"step": step, "checksum": checkpoints.extra(step)["fingerprint"]}
    if processes.broadcast_from_first(read_json(folder / RECORD)) == record:
        return
    export_stage(stage, workdir)
    if processes.is_first():
        write_json(folder / RECORD, record)
    processes.barrier()  # the others read the folder next


def export_stage(stage: StageConfig, workdir: Path) -> None:
    """Writes a stage's policy as a Hugging Face model folder, and its adapter as a PEFT folder."""
    loaded = load_policy(stage, workdir)
    settings, config = stage.settings, loaded.programs.decoder.config
    folder = export_folder(workdir, settings.name)
    export.export(loaded.params, config, loaded.programs.chat, folder)
    finish(loaded, folder, workdir, "transformers")
    processes.log(f"exported {describe_policy(loaded)}: {folder}")
    if settings.lora is None or loaded.trained is None:
        return
    if settings.weights.adapter:
        processes.log(
            "exported no adapter alone: what it is added to is weights.source with weights.adapter "
            f"{settings.weights.adapter}, which no PEFT folder can name"
        )
        return
    folder = workdir / settings.name / "adapter"
    base = load.resolve(settings.weights.source)
    peft.export_adapter(loaded.trained, settings.lora, config, folder, base=base)
    finish(loaded, folder, workdir, "peft")
    processes.log(f"exported its adapter: {folder}")


def finish(
    loaded: LoadedPolicy, folder: Path, workdir: Path, library: Literal["transformers", "peft"]
) -> None:
    """Adds the model card, and uploads the folder where config.export says so."""
    if not processes.is_first():
        return
    settings, own = loaded.programs.settings, registry.get(loaded.programs.settings.task)
    instructions = [text or own.instruction for text in settings.plan.instructions[1:]]
    model_card.write(
        folder,
        workdir,
        settings.name,
        step=loaded.step,
        instructions=tuple(dict.fromkeys(instructions)),
        license=settings.export.license,
        library=library,
    )
    if settings.export.push:
        name = settings.export.push + ("-adapter" if library == "peft" else "")
        hub.upload(folder, name, "export.push")
        processes.log(f"uploaded {folder} to {hub.PREFIX}{name}")
