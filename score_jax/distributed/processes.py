"""Several hosts: joining a run, and exchanging values that are not sharded arrays.

Every host runs the same program in the same order. A value that may differ between hosts (a
clock, the view of a shared file system, a signal) is agreed on through `all_gather`,
`all_gather_objects`, `broadcast_from_first` or `any_process`, which all hosts must call at the
same point. With one host all of them return at once.
"""

import os
import pickle
import sys
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# JAX's coordination service ends a run when a host is silent for this long. The watchdog is
# faster and says more; this catches what the watchdog's own threads cannot.
HEARTBEAT_SECONDS = 50
SHUTDOWN_SECONDS = 60  # waited at the end for the other hosts
# XLA's collectives on CPUs time out after 30 s, which is before the graders' deadline.
PATIENCE, PATIENCE_SECONDS = "xla_cpu_collective_timeout_seconds", 3600
AUTO = "auto"


def start(coordinator: str, processes: int | None, process: int | None) -> None:
    """Joins the hosts of a run; must be called before any device is used.

    Args:
      coordinator: HOST:PORT of process 0; "auto": taken from the environment of a TPU, Slurm or
        MPI; "": this is the only host, unless a TPU's environment names several.

    Raises:
      ValueError: the three arguments contradict each other, or "auto" finds no description.
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
    # score_jax handles SIGTERM itself: after each step the hosts agree on whether to stop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **given,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise ValueError(
            f"--coordinator is {coordinator!r}, but it describes no hosts ({error}); "
            "set --coordinator=HOST:PORT, --processes and --process"
        ) from error
    jax.devices()  # waits for all hosts here, so that no later call does


def check_flags(coordinator: str, processes: int | None, process: int | None) -> None:
    """Checks the flags that describe the hosts.

    Raises:
      ValueError: a flag is missing or malformed.
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
    """The number of hosts; initialises no device while there is only one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def process_index() -> int:
    """The number of this host, from 0."""
    return jax.process_index() if process_count() > 1 else 0


def is_first() -> bool:
    """Whether this is the host that writes and prints."""
    return process_index() == 0


def log(text: str) -> None:
    """Prints a line on the first host."""
    if is_first():
        print(text, flush=True)


def log_prefix() -> str:
    """Prefix of this host's error messages; "" when there is only one host."""
    return f"[host {process_index()}] " if process_count() > 1 else ""


def file_of_process(name: str) -> str:
    """The name with this host's number in it; unchanged when there is only one host."""
    stem, dot, kind = name.rpartition(".")
    return f"{stem}_host{process_index()}{dot}{kind}" if process_count() > 1 else name


def all_gather(values: np.ndarray) -> np.ndarray:
    """Gathers float64 values [n] of every host to all hosts, as [hosts, n]; n is equal on all."""
    values = np.asarray(values, np.float64)
    if process_count() == 1:
        return values[None]
    words = multihost_utils.process_allgather(
        values.view(np.uint32)
    )  # devices may not have float64
    return np.ascontiguousarray(words).view(np.float64)


def all_gather_objects(value: Any) -> list[Any]:
    """Gathers a Python value of every host to all hosts, in the order of the hosts.

    Values are pickled, which is safe: they come from this same program, over the links that
    also carry its parameters.
    """
    if process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = all_gather(np.asarray([len(data)]))[:, 0].astype(int)
    room = (
        1 << int(max(lengths) - 1).bit_length()
    )  # powers of two, since every size compiles a program
    found = multihost_utils.process_allgather(np.pad(data, (0, room - len(data))))
    return [pickle.loads(row[:n].tobytes()) for row, n in zip(found, lengths, strict=True)]


def broadcast_from_first(value: Any) -> Any:
    """The first host's value on all hosts; for what a shared file system shows, for example."""
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
    """Excepthook: prints the traceback; with several hosts it also ends this process."""
    sys.__excepthook__(kind, error, trace)
    if process_count() > 1:
        exit_process(1)


def exit_process(code: int) -> None:
    """Ends this process with an exit code.

    A regular exit of Python waits for all hosts, which may never come after an error; so with
    several hosts and a code other than 0 the process ends at once.
    """
    if code and process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
