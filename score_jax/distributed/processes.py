"""Several hosts: how they find each other, and what they tell each other besides arrays.

Every host runs the same program in the same order; whatever could differ between them
(a clock, a file system's view, a signal) is decided by `exchange`, `gather` or
`from_first`, which all hosts must call at the same point. On one host nothing here does
anything.
"""

import os
import pickle
import sys
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# After this long without a sign of life JAX's own service ends a run. The watchdog is
# faster, and says more; this is for what it can't see.
HEARTBEAT_SECONDS = 50
SHUTDOWN_SECONDS = 60  # waited at the end for hosts that don't come any more
# Collectives of CPUs would give up on a slow host after 30 s, before its graders' deadline.
PATIENCE, PATIENCE_SECONDS = "xla_cpu_collective_timeout_seconds", 3600
AUTO = "auto"


def start(coordinator: str, processes: int | None, process: int | None) -> None:
    """Joins the hosts of a run; must come before anything that uses a device.

    Args:
      coordinator: HOST:PORT of process 0; "auto": the TPU's, Slurm's or MPI's own
        description says everything; "": this is the only host, unless a TPU's
        environment names several.

    Raises:
      ValueError: the three don't fit together.
    """
    if not coordinator and (processes or process) is None:
        if "," not in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
            return
        coordinator = AUTO
    given: dict[str, Any] = {}
    if coordinator != AUTO:
        check_flags(coordinator, processes, process)
        given = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
            "cluster_detection_method": "deactivate",
        }
    if jax.config.values["jax_platforms"] == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        told = os.environ.get("XLA_FLAGS", "")
        if PATIENCE not in told:  # XLA reads it when the first device is asked for
            os.environ["XLA_FLAGS"] = f"{told} --{PATIENCE}={PATIENCE_SECONDS}".strip()
    # SIGTERM is ours: it is agreed on with the metrics of each step.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **given,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise ValueError(
            f"--coordinator is {coordinator!r}, but the hosts can't be told from it ({error}); "
            "set --coordinator=HOST:PORT, --processes and --process"
        ) from error
    jax.devices()  # all hosts meet here, so that nothing later waits for it


def check_flags(coordinator: str, processes: int | None, process: int | None) -> None:
    """Checks the flags that describe the hosts.

    Raises:
      ValueError: they do not.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(
            f"--coordinator is {coordinator!r}; set it to HOST:PORT of process 0, or to 'auto'"
        )
    if processes is None or process is None or not 0 <= process < processes:
        raise ValueError(
            f"--processes is {processes} and --process is {process}; set how many processes there "
            "are, and for each its own number from 0"
        )


def process_count() -> int:
    """How many hosts there are; asks no device while there is only one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def process_index() -> int:
    """Which of them this is, from 0."""
    return jax.process_index() if process_count() > 1 else 0


def is_first() -> bool:
    """Whether this is the host that writes and prints."""
    return process_index() == 0


def log(text: str) -> None:
    """Prints a line, once for all hosts."""
    if is_first():
        print(text, flush=True)


def log_prefix() -> str:
    """What stands before this host's errors; empty when there is only one."""
    return f"[host {process_index()}] " if process_count() > 1 else ""


def file_of_process(name: str) -> str:
    """A file name of this host's own, where several write the same kind of file."""
    stem, dot, kind = name.rpartition(".")
    return f"{stem}_host{process_index()}{dot}{kind}" if process_count() > 1 else name


def all_gather(values: np.ndarray) -> np.ndarray:
    """Gives every host's float64 values to all, as [hosts, n]; n is the same everywhere."""
    values = np.asarray(values, np.float64)
    if process_count() == 1:
        return values[None]
    words = multihost_utils.process_allgather(values.view(np.uint32))  # devices may lack float64
    return np.ascontiguousarray(words).view(np.float64)


def all_gather_objects(value: Any) -> list[Any]:
    """Gives every host's Python value to all, in the hosts' order.

    Values are pickled: they come from this same program, over the links that carry its
    parameters.
    """
    if process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = all_gather(np.asarray([len(data)]))[:, 0].astype(int)
    room = 1 << int(max(lengths) - 1).bit_length()  # few sizes: each compiles a program
    found = multihost_utils.process_allgather(np.pad(data, (0, room - len(data))))
    return [pickle.loads(row[:n].tobytes()) for row, n in zip(found, lengths, strict=True)]


def broadcast_from_first(value: Any) -> Any:
    """The first host's value: what files show may differ between hosts for a moment."""
    return all_gather_objects(value)[0]


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any host; all hosts must call at the same point."""
    if process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def barrier() -> None:
    """Waits for all hosts."""
    all_gather(np.zeros(1))


def exit_with_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Ends a process by an error that nothing has caught, or several hosts by it."""
    sys.__excepthook__(kind, error, trace)
    if process_count() > 1:
        exit_process(1)


def exit_process(code: int) -> None:
    """Ends this process; with several hosts at once, for the others may never come.

    A regular end of Python waits for all hosts.
    """
    if code and process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
