"""The command line: which stages run, in which order, in which folder.

    python -m score_jax.main --config=configs/stage2.py [--workdir=DIR]
        [--mode=train|evaluate|report|export|ask|collect] [--config.field=value ...]
        [--coordinator=HOST:PORT --processes=N --process=I | --coordinator=auto]
    python -m score_jax.main --config=FILE:preset --mode=plan [--topology=v5p:4x4x4 [--search]
        [--lengths=full|realistic]]
    python -m score_jax.main --config=FILE --mode=bench [--lengths=drawn|full|realistic]

A config names its parent stage. Stages that the workdir already holds are used, missing ones
run first. The exit code is 0 only on success; an error is printed in one line, and its
traceback is written to the workdir.
"""

import errno
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from jax.errors import JaxRuntimeError
from ml_collections import config_flags

from score_jax.checks import RENAMED_FIELDS
from score_jax.distributed import processes
from score_jax.distributed.signals import Interrupted
from score_jax.distributed.watchdog import HostLost, Watchdog
from score_jax.planning.bench import LENGTHS, run_bench
from score_jax.planning.command import run_plan
from score_jax.report import comparison_page
from score_jax.stages import memory
from score_jax.stages.chain import run_mode
from score_jax.stages.checkpoint import StorageError
from score_jax.stages.comparison import is_comparison, run_comparison
from score_jax.stages.compilation import keep_programs
from score_jax.stages.resolve import CONFIG_ERRORS, config_error, one_line, planned, resolve_stages
from score_jax.stages.train import TrainingError
from score_jax.text import terminal

CONFIG = config_flags.DEFINE_config_file("config", None, "FILE[:preset] of the stage to reach")
WORKDIR = flags.DEFINE_string("workdir", None, "where everything is written; runs/<config name>")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "report", "export", "ask", "collect", "plan", "bench"],
    "train (evaluates and reports too), a part of that, a Hugging Face folder, a dialogue, graded "
    "rollouts of the stage's policy, its memory and bounds here or elsewhere, or its speed here",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "several hosts: HOST:PORT of process 0; auto: as TPU, Slurm or MPI say"
)
PROCESSES = flags.DEFINE_integer("processes", None, "how many processes there are on all hosts")
PROCESS = flags.DEFINE_integer("process", None, "number of this one, from 0")
OVER_HOSTS = ("train", "evaluate", "export", "collect")  # other modes run in one process
PROMPT = flags.DEFINE_string("prompt", "", "the problem for --mode=ask; none: a terminal asks")
TOPOLOGY = flags.DEFINE_string(
    "topology", "", "of --mode=plan: v5e:4x4, 2*v5p:4x4x4, h100:1; none: here"
)
SEARCH = flags.DEFINE_bool("search", False, "of --mode=plan: try meshes and ways to save memory")
TURN_LENGTHS = flags.DEFINE_enum(
    "lengths",
    "drawn",
    LENGTHS,
    "of --mode=bench: turns end where the model ends them, at their limits, or at lengths from a "
    "long-tailed list with a mean of 35% of the limit; --mode=plan counts realistic or full ones",
)
REPEATS = flags.DEFINE_integer(
    "repeats", 5, "of --mode=bench: times that each phase is timed", lower_bound=1
)

OVERRIDE = re.compile(r"--?config\.([\w.]+)=(.*)", re.DOTALL)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def null_overrides(argv: Sequence[str]) -> dict[str, None]:
    """The fields that the command line sets to None, such as --config.objective.clip=None."""
    last = {found[1]: found[2] for arg in argv if (found := OVERRIDE.fullmatch(arg))}
    return {path: None for path, value in last.items() if value == "None"}


def overrides_any(arg: str, fields: Mapping[str, Any]) -> bool:
    """Whether an argument overrides one of the fields."""
    found = OVERRIDE.fullmatch(arg)
    return found is not None and found[1] in fields


def check_override_names(argv: Sequence[str]) -> None:
    """Refuses overrides of fields by their former names.

    Raises:
      ValueError: a field has been renamed.
    """
    for arg in argv:
        found = OVERRIDE.fullmatch(arg)
        if found and found[1] in RENAMED_FIELDS:
            raise ValueError(
                f"--config.{found[1]} is no field of the config; it is "
                f"--config.{RENAMED_FIELDS[found[1]]} now"
            )


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line, the config file and its overrides.

    Number flags accept no None, so overrides with None are applied separately.

    Raises:
      ValueError: a flag, the file or an override is invalid. Only config files run here, so
        every error comes from them.
    """
    check_override_names(argv)
    try:
        none = null_overrides(argv)
        rest = flags.FLAGS([arg for arg in argv if not overrides_any(arg, none)])
        fields = CONFIG.value and CONFIG.value.keys()  # fails where no file could be read
        if CONFIG.value is not None:
            CONFIG.value.update_from_flattened_dict(none)
    except flags.Error as error:
        raise ValueError(one_line(error)) from error
    except (OSError, *CONFIG_ERRORS) as error:
        raise config_error("--config", error) from error
    if len(rest) > 1:
        raise ValueError(f"unknown arguments: {' '.join(rest[1:])}; write --name=value")
    if fields is None:
        raise ValueError("--config is missing; set it to a file such as configs/stage2.py")
    return rest


def workdir() -> Path:
    """The folder of the run, from the flags."""
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    return Path(WORKDIR.value or Path("runs") / Path(path.partition(":")[0]).stem)


def main(_: list[str]) -> None:
    """Runs the mode asked for."""
    logging.set_verbosity(logging.ERROR)  # Orbax logs every file that it opens
    # Its errors and those of its event loop are hidden too: Orbax raises the first one, and may
    # log others after that one was reported.
    logging.get_absl_handler().addFilter(lambda record: "orbax" not in record.pathname)
    getLogger("asyncio").setLevel(CRITICAL)
    flag = flags.FLAGS["config"]
    path = config_flags.get_config_filename(flag)
    overrides = config_flags.get_override_values(flag) | null_overrides(sys.argv)
    if is_comparison(CONFIG.value):
        compare(path, overrides)
        return
    stages = resolve_stages(CONFIG.value, overrides, path)
    if MODE.value == "plan":
        realistic = TURN_LENGTHS.value == "realistic"
        run_plan(
            planned(stages),
            TOPOLOGY.value,
            workdir(),
            search=SEARCH.value,
            realistic=realistic,
        )
        return
    if MODE.value == "bench":
        run_bench(planned(stages), workdir(), lengths=TURN_LENGTHS.value, repeats=REPEATS.value)
        return
    if MODE.value in OVER_HOSTS:
        processes.start(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    keep_programs()  # not above: planning and measuring tell how long programs compile
    with Watchdog(COORDINATOR.value.rpartition(":")[0]) as watchdog:
        run_mode(
            MODE.value,
            stages,
            workdir(),
            config=path,
            command=terminal.as_text(" ".join(sys.argv)),
            prompt=terminal.as_text(PROMPT.value),
            watchdog=watchdog,
        )


def compare(path: str, overrides: Mapping[str, Any]) -> None:
    """Runs a comparison of methods, or writes its page again.

    Raises:
      ValueError: the mode is for one stage.
    """
    if MODE.value == "report":
        print(f"report: {comparison_page.write(workdir())}")
        return
    if MODE.value != "train":
        raise ValueError(
            f"--mode is {MODE.value!r}, but the config compares methods; choose train or report, "
            "or a method of configs/methods.py"
        )
    processes.start(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    keep_programs()
    with Watchdog(COORDINATOR.value.rpartition(":")[0]) as watchdog:
        run_comparison(
            CONFIG.value,
            overrides,
            workdir(),
            config=path,
            command=terminal.as_text(" ".join(sys.argv)),
            watchdog=watchdog,
        )


def print_error(error: BaseException) -> None:
    """Prints an error in one line; writes its traceback to the workdir, if that exists."""
    note = ""
    with suppress(OSError, flags.Error):  # no workdir yet, or a full disk
        path = workdir() / processes.file_of_process("traceback.txt")
        if path.parent.is_dir():
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            note = f" (traceback in {path})"
    print(f"{processes.log_prefix()}error: {one_line(error)}{note}", file=sys.stderr, flush=True)


def memory_error(error: BaseException) -> RuntimeError:
    """The error for a device whose memory is full, with the fields that save memory."""
    advised = RuntimeError(
        f"the device's memory is full ({one_line(error)}); the update takes less with a larger "
        "learner.microbatches and with compute.remat=full, sampling with fewer batch x "
        "sampling.group_size, measuring with a smaller evaluation.batch"
    )
    return advised.with_traceback(error.__traceback__)


def is_ours(error: BaseException) -> bool:
    """Whether this package raised the error, rather than a library that it called."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    name = frame.f_globals["__name__"]
    return name == "__main__" or name.split(".")[0] in ("score_jax", "configs")


def hide_late_write_errors(found: Any) -> None:
    """Unraisablehook: prints everything except Orbax's late errors of a failed save.

    Orbax stops at the first write that fails and closes its event loop; the other writes then
    fail because the loop is closed.
    """
    if "Event loop is closed" not in str(found.exc_value):
        sys.__unraisablehook__(found)


def run() -> None:
    """Entry point: exit codes and one-line errors.

    A ValueError raised by score_jax is a user's mistake and exits with 2; errors of training or
    storage exit with 1. Any other error is a defect and prints its traceback.
    """
    terminal.open_to_all_text()
    memory.reserve()
    sys.excepthook = processes.exit_with_traceback
    sys.unraisablehook = hide_late_write_errors
    try:
        app.run(main, flags_parser=parse_flags)
    except Interrupted as stop:
        print(f"{processes.log_prefix()}stopped: {stop}", file=sys.stderr, flush=True)
        processes.exit_process(stop.code)
    except ValueError as error:
        if not is_ours(error):
            raise
        print_error(error)
        processes.exit_process(2)
    except (TrainingError, StorageError) as error:
        print_error(error)
        processes.exit_process(1)
    except HostLost as error:
        print_error(error)
        processes.exit_process(error.code)
    except JaxRuntimeError as error:
        if memory.FULL not in str(error):
            raise
        print_error(memory_error(error))
        processes.exit_process(2)
    except OSError as error:
        if error.errno in DISK_FULL:
            error = StorageError(f"{error}; make room and run the same command again")
        print_error(error)
        processes.exit_process(1)


if __name__ == "__main__":
    run()
