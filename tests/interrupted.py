"""Runs score_jax.main and sends it a signal at a chosen moment.

    python tests/interrupted.py SIGNAL MOMENT STEP --config=... --workdir=...

Moments of a step: `rollout`, sampled and not yet graded; `update`, learnt from and not
yet written down; `save`, while its checkpoint is being written.
"""

import os
import signal
import sys

from score_jax import main
from score_jax.rl import rollout
from score_jax.stages.checkpoint import Checkpoints
from score_jax.stages.train import StageRun

GIVEN, MOMENT, STEP = signal.Signals[sys.argv[1]], sys.argv[2], int(sys.argv[3])


class Fatal(dict):
    """What stands in a checkpoint beside the arrays; whoever writes it gets the signal."""

    def __or__(self, other):
        return Fatal({**self, **other})

    def items(self):
        os.kill(os.getpid(), GIVEN)
        return super().items()


def before(function, signalled):
    """The function, with the signal sent before the call of which `signalled(*args)`."""

    def call(*args, **options):
        if signalled(*args):
            os.kill(os.getpid(), GIVEN)
        return function(*args, **options)

    return call


def arm():
    """Lays the trap."""
    if MOMENT == "rollout":
        stages = []
        run = StageRun.run
        StageRun.run = lambda stage, learn: stages.append(stage) or run(stage, learn)
        rollout.Grading.result = before(
            rollout.Grading.result, lambda *_: stages and stages[0].progress.position == STEP - 1
        )
    elif MOMENT == "update":
        run_all = StageRun.run

        def run_signalled(stage, learn):
            def learn_signalled(stage, step):
                fetch = learn(stage, step)
                if step == STEP - 1:
                    # Whether the write of an earlier checkpoint is through is left to no chance.
                    stage.checkpoints.wait()
                    os.kill(os.getpid(), GIVEN)
                return fetch

            run_all(stage, learn_signalled)

        StageRun.run = run_signalled
    elif MOMENT == "save":
        save = Checkpoints.save
        Checkpoints.save = lambda self, step, state, extra, reward: save(
            self, step, state, Fatal(extra) if step == STEP else extra, reward
        )
    else:
        raise ValueError(f"moment is {MOMENT!r}; choose rollout, update or save")


if __name__ == "__main__":
    arm()
    del sys.argv[1:4]
    main.run()
