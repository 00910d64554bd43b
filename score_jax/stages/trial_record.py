"""What a trial of a comparison was begun for, so that a folder never holds parts of two trials."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_jax.distributed import processes
from score_jax.report.json_files import read_json, write_json
from score_jax.stages.handoff import StageConfig, config_fields

NAME = "trial.json"
EMPTY: tuple[Any, ...] = ("", 0, None, [])
UNSEEN = ("log", "profile", "grading", "alarms", "mesh", "export")  # sections that change no result
# And those besides that only training reads: nothing that is measured without it.
TRAINING = ("optimizer", "learner", "estimator", "coefficients", "checkpoint", "steps", "batch")


def check_unchanged(
    folder: Path,
    stages: Sequence[StageConfig],
    sets: Mapping[str, Any],
    *,
    begin: bool = True,
    unread: Sequence[str] = (),
) -> None:
    """Compares what a folder is to hold with what it was begun for.

    Args:
      stages: of the trial, and its last one as it is measured on test problems.
      sets: further measurements, as evaluation.sets.
      begin: begins the folder, and writes down for what, unless that is done.
      unread: sections and fields that nothing of this trial reads, besides UNSEEN.

    Raises:
      ValueError: a field differs.
    """

    def read(name: str) -> bool:
        return name.split(".")[0] not in (*UNSEEN, *unread)

    fields: dict[str, Any] = {
        f"{number}:{stage.settings.name}": {
            name: value for name, value in config_fields(stage.config).items() if read(name)
        }
        for number, stage in enumerate(stages, 1)
    }
    fields["comparison"] = config_fields(ConfigDict({"sets": dict(sets)}))
    current = json.loads(json.dumps(fields))
    recorded = processes.broadcast_from_first(read_json(folder / NAME))
    if recorded is None:
        if begin and processes.is_first():
            write_json(folder / NAME, current)
        processes.barrier()
        return
    for stage in current.keys() | recorded.keys():
        new, old = current.get(stage, {}), recorded.get(stage, {})
        section = "config.comparison" if stage == "comparison" else "config"
        for name in sorted(filter(read, new.keys() | old.keys())):
            if name not in old and new[name] in EMPTY:
                continue  # a field that came later, and does nothing
            if new.get(name) != old.get(name):
                raise ValueError(
                    f"{section}.{name} is {new.get(name)}, but {folder} was begun with "
                    f"{old.get(name)}; choose another --workdir, or set the field back"
                )
