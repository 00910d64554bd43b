"""Writes a stage's policy in the folders that other libraries open.

A stage's folder gets export/, the whole model for transformers and vLLM, and, if the stage
trains an adapter, adapter/, that alone for PEFT. Each has a model card. export.json tells
which checkpoint they hold.
"""

from pathlib import Path
from typing import Literal

from score_jax.distributed import processes
from score_jax.model.weights import export, load, peft
from score_jax.model.weights.families import to_hf
from score_jax.report import model_card
from score_jax.report.json_files import read_json, write_json
from score_jax.stages import identity
from score_jax.stages.build import StagePrograms
from score_jax.stages.handoff import (
    LoadedPolicy,
    StageConfig,
    describe_policy,
    export_folder,
    load_policy,
    open_checkpoints,
    selected_step,
)
from score_jax.stages.settings import Settings
from score_jax.tasks import registry
from score_jax.text import hub

ADAPTER = "adapter"  # folder of a stage


def check_exportable(programs: StagePrograms) -> None:
    """Checks that a stage's model can be exported, before it is trained.

    Raises:
      ValueError: no config.json can describe it.
    """
    config = programs.decoder.config
    export.check_shape(config, to_hf(config))


def export_base(stage: StageConfig, workdir: Path) -> None:
    """Exports a finished stage that is the base model of later ones, unless that is done."""
    folder = workdir / stage.settings.name
    with open_checkpoints(stage.settings, folder) as checkpoints:
        record = {"step": selected_step(stage.settings, checkpoints)}
    if processes.broadcast_from_first(read_json(folder / identity.EXPORTED)) != record:
        write_folders(load_policy(stage, workdir), workdir)


def export_stage(stage: StageConfig, workdir: Path) -> None:
    """Writes a stage's policy, and uploads it where config.export says so."""
    loaded = load_policy(stage, workdir)
    folders = write_folders(loaded, workdir)
    settings = loaded.programs.settings
    if not settings.export.push or not processes.is_first():
        return
    for folder in folders:
        name = repository(folder, settings)
        if not name:
            processes.log(
                f"{folder} is not uploaded: it goes with weights.source "
                f"{settings.weights.source}, which is on no hub"
            )
            continue
        hub.upload(folder, name, "export.push")
        processes.log(f"uploaded {folder} to {hub.PREFIX}{name}")


def repository(folder: Path, settings: Settings) -> str:
    """Where a folder is uploaded to; "": nowhere, an adapter whose base model no one else has."""
    if folder.name != ADAPTER:
        return settings.export.push
    return f"{settings.export.push}-adapter" if hub.is_hub(settings.weights.source) else ""


def write_folders(loaded: LoadedPolicy, workdir: Path) -> list[Path]:
    """Writes a stage's policy as a Hugging Face folder, and its adapter as a PEFT folder."""
    settings, config = loaded.programs.settings, loaded.programs.decoder.config
    own = workdir / settings.name
    folder = export_folder(workdir, settings.name)
    if processes.is_first():
        (own / identity.EXPORTED).unlink(missing_ok=True)  # no record beside half a folder
    export.export(loaded.params, config, loaded.programs.chat, folder)
    write_card(loaded, folder, workdir, "transformers")
    processes.log(f"exported {describe_policy(loaded)}: {folder}")
    folders = [folder]
    if settings.lora is not None and loaded.trained is not None:
        if settings.weights.adapter:
            processes.log(
                "exported no adapter alone: what it is added to is weights.source with "
                f"weights.adapter {settings.weights.adapter}, which no PEFT folder can name"
            )
        else:
            folder, base = own / ADAPTER, load.resolve(settings.weights.source)
            peft.export_adapter(loaded.trained, settings.lora, config, folder, base=base)
            write_card(loaded, folder, workdir, "peft")
            processes.log(f"exported its adapter: {folder}")
            folders.append(folder)
    if processes.is_first():
        write_json(own / identity.EXPORTED, {"step": loaded.step})
    processes.barrier()  # the others may read the folders next
    return folders


def write_card(
    loaded: LoadedPolicy, folder: Path, workdir: Path, library: Literal["transformers", "peft"]
) -> None:
    """Adds the model card to a folder, on the first host."""
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
