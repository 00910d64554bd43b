"""Records windows of steps with the JAX profiler, on all hosts at the same steps.

View:  tensorboard --logdir=WORKDIR/STAGE/profile
"""

from collections.abc import Callable
from pathlib import Path

import jax

from score_jax.distributed import processes
from score_jax.stages.sections import ProfileConfig


class Profile:
    """Starts and stops the profiler of this host."""

    def __init__(self, config: ProfileConfig, folder: Path):
        """Traces go to `folder`/host<N>, one subfolder for each host."""
        self.config = config
        self.folder = folder / f"host{processes.process_index()}"
        self.on = False

    def begin_step(self, done: int, settle: Callable[[], None]) -> None:
        """Starts or stops recording before the step that follows `done` finished ones.

        Args:
          settle: waits for the step before, so that a record holds whole steps.
        """
        if self.on == self.config.records(done):
            return
        settle()
        if self.on:
            self.close()
        else:
            jax.profiler.start_trace(self.folder)
            self.on = True

    def close(self) -> None:
        """Stops recording and writes the trace, if a window is open."""
        if self.on:
            jax.profiler.stop_trace()
            self.on = False
