"""Windows of steps that the profiler records, on all hosts at the same steps.

tensorboard --logdir=WORKDIR/STAGE/profile
"""

from pathlib import Path

import jax

from score_jax.distributed import processes
from score_jax.stages.settings import ProfileConfig


class Profile:
    """The profiler of one host, on or off."""

    def __init__(self, config: ProfileConfig, folder: Path):
        """Records into `folder`, each host into its own part."""
        self.config = config
        self.folder = folder / f"host{processes.process_index()}"
        self.on = False

    def begin_step(self, done: int) -> None:
        """Switches on or off where a step begins."""
        if self.on == self.config.records(done):
            return
        if self.on:
            self.close()
        else:
            jax.profiler.start_trace(self.folder)
            self.on = True

    def close(self) -> None:
        """Writes the window that is open, if one is."""
        if self.on:
            jax.profiler.stop_trace()
            self.on = False
