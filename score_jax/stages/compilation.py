"""Compiled programs: kept in the user's cache folder from one start to the next, and counted.

JAX finds a kept program by its code, the compiler's version and flags, and the devices with
all that their processors can do, so machines of several kinds may share a folder.
"""

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import jax

from score_jax.distributed import processes

FOLDER, SECONDS, ENABLED = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_enable_compilation_cache",
)
KEPT_SECONDS = 0.1  # programs that compile faster are not worth a file
AGE_SECONDS = 30 * 24 * 3600  # of a file that is deleted; JAX itself deletes none
FREE_BYTES = 1 << 28  # JAX warns of each program that finds no room
COMPILED = "/jax/core/compile/backend_compile_duration"  # also of programs that were read
READ = "/jax/compilation_cache/cache_retrieval_time_sec"


def cache_folder() -> Path:
    """Where compiled programs are kept: below XDG_CACHE_HOME, or else ~/.cache.

    Raises:
      RuntimeError: this user has no home folder.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "score_jax" / "programs"


def open_folder(folder: Path) -> None:
    """Makes the folder if need be; deletes old files, and empty ones, left by a full disk.

    Raises:
      OSError: nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 20))
    if shutil.disk_usage(folder).free < FREE_BYTES:
        raise OSError(f"the disk of {folder} is nearly full")
    for path in folder.glob("*-cache"):
        with suppress(FileNotFoundError):  # another process that starts has deleted it
            known = path.stat()
            if not known.st_size or known.st_mtime < time.time() - AGE_SECONDS:
                path.unlink()


def keep_programs() -> None:
    """Has JAX keep compiled programs in the user's cache folder; its own settings come first.

    With several hosts none are kept: JAX writes on the first host alone, and GPUs, whose
    compilers work together, could wait forever for a host that reads instead.
    """
    values = jax.config.values
    if values[FOLDER] is not None or not values[ENABLED] or processes.process_count() > 1:
        return
    try:
        folder = cache_folder()
        open_folder(folder)
    except (OSError, RuntimeError) as error:
        processes.log(f"compiled programs are not kept: {error}")
        return
    jax.config.update(FOLDER, str(folder))
    if SECONDS.upper() not in os.environ:
        jax.config.update(SECONDS, KEPT_SECONDS)


@dataclass
class Compiled:
    """Programs that were compiled, or read from the cache folder."""

    names: list[str] = field(default_factory=list)
    read: int = 0  # how many of them were read
    seconds: float = 0.0  # of compiling and reading, without tracing

    def metrics(self) -> dict[str, float]:
        """What the log has of them."""
        return {"compile/programs": float(len(self.names)), "compile/seconds": self.seconds}

    def describe(self) -> str:
        """One line."""
        folder = jax.config.values[ENABLED] and jax.config.values[FOLDER]
        read = f", {self.read} of them read from {folder}" if folder else ""
        return f"compiled {len(self.names)} programs in {self.seconds:.1f} s{read}"


class Compilations:
    """Counts what this process compiles while it is open, in phases that come again."""

    def __init__(self):
        self.found = Compiled()  # since `take`
        self.names: list[str] = []  # since the phase began
        self.phase = "start"
        self.seen: set[str] = set()  # phases that have ended
        self.told: set[str] = set()  # programs that `enter_phase` has returned

    def enter_phase(self, phase: str) -> list[str]:
        """Begins a phase; returns what the one before has compiled, had it run earlier as well.

        Each name is returned once.
        """
        late = set(self.names) - self.told if self.phase in self.seen else set()
        self.seen.add(self.phase)
        self.told |= late
        self.phase, self.names = phase, []
        return sorted(late)

    def take(self) -> Compiled:
        """What was compiled since the last call."""
        found, self.found = self.found, Compiled()
        return found

    def add(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """Listens to what JAX tells of its work."""
        self.found.read += event == READ
        if event == COMPILED:
            name = str(kwargs.get("fun_name"))
            self.names.append(name)
            self.found.names.append(name)
            self.found.seconds += duration_secs

    def __enter__(self) -> "Compilations":
        jax.monitoring.register_event_duration_secs_listener(self.add)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self.add)
