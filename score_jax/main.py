"""The command: which stages run, in which order, in which folder.

    python -m score_jax.main --config=configs/stage2.py [--workdir=DIR]
        [--mode=train|evaluate|report] [--config.field=value ...]

A config names its parent stage. What the workdir already holds is used, what is
missing is run first. The exit code is 0 only on success; a mistake is told in one
line, with the traceback kept in the workdir.
"""

import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from score_jax.chain import run_mode
from score_jax.checkpoint import StorageError
from score_jax.handoff import Link
from score_jax.settings import parse
from score_jax.train import Interrupted, TrainingError

CONFIG = config_flags.DEFINE_config_file("config", None, "FILE[:preset] of the stage to reach")
WORKDIR = flags.DEFINE_string("workdir", None, "where everything is written; runs/<config name>")
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate", "report"], "train (evaluates and reports too), or a part"
)

# Overrides of these fields on the command line reach the parent stages as well: they say
# what is trained and measured, not how a stage goes about it.
SHARED = (
    "seed", "task", "data", "tokenizer", "weights", "model", "mesh", "grading", "evaluation", "log",
)  # fmt: skip


def load_config(path: str) -> ConfigDict:
    """Runs `get_config` of FILE or FILE:preset.

    Raises:
      ValueError: there is no such file or preset.
    """
    name, _, preset = path.partition(":")
    if not Path(name).is_file():
        raise ValueError(f"config.parent is {path!r}; there is no file {name}")
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None and spec.loader is not None, f"{name} is not a Python file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(preset) if preset else module.get_config()


def resolve_chain(config: ConfigDict, overrides: dict[str, Any]) -> list[Link]:
    """The stages from the first to the one asked for."""
    links = [Link(settings=parse(config), config=config)]
    while parent := links[0].settings.parent:
        config = load_config(parent)
        for name, value in overrides.items():
            if name.split(".")[0] in SHARED:
                config.update_from_flattened_dict({name: value})
        links.insert(0, Link(settings=parse(config), config=config))
        names = [link.settings.name for link in links]
        if len(set(names)) < len(names):
            raise ValueError(f"config.parent leads in a circle: {' -> '.join(names)}")
    return links


def main(argv: list[str]) -> None:
    """Runs the mode asked for."""
    logging.set_verbosity(logging.ERROR)  # Orbax tells of every file that it opens
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    flag = flags.FLAGS["config"]
    overrides = config_flags.get_override_values(flag)
    links = resolve_chain(CONFIG.value, overrides)
    path = config_flags.get_config_filename(flag)
    workdir = Path(WORKDIR.value or Path("runs") / Path(path.partition(":")[0]).stem)
    run_mode(MODE.value, links, workdir, config=path, command=" ".join(sys.argv))


def tell(error: BaseException) -> None:
    """Prints one line and keeps the traceback beside the run."""
    folder = Path("runs")
    if flags.FLAGS.is_parsed() and WORKDIR.value:
        folder = Path(WORKDIR.value)
    note = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)))
        note = f" (traceback in {folder / 'traceback.txt'})"
    except OSError:
        note = ""
    print(f"error: {' '.join(str(error).split())}{note}", file=sys.stderr, flush=True)


def run() -> None:
    """Entry point: exit codes and one-line errors."""
    try:
        flags.mark_flag_as_required("config")
        app.run(main)
    except Interrupted as stop:
        print(f"stopped: {stop}", file=sys.stderr, flush=True)
        sys.exit(143)
    except (ValueError, AttributeError, KeyError, TypeError, FileNotFoundError) as error:
        tell(error)
        sys.exit(2)
    except (TrainingError, StorageError, OSError) as error:
        tell(error)
        sys.exit(1)


if __name__ == "__main__":
    run()
