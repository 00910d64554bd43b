"""Runs score_jax.main as one of several hosts, and does something to it on the way.

    python tests/hosts_trial.py WHAT MOMENT STEP --config=... --workdir=... --coordinator=...

WHAT: KILL, STOP or TERM (the signal goes to this process), SLEEP:seconds, FULL (no file
may grow beyond a few bytes from now on), HANG (its graders stand still),
NONE. MOMENT of a step: `rollout`, sampled and not yet graded; `update`, learnt from and
not yet written down.
"""

import os
import resource
import signal
import sys
import time

import psutil

from score_jax import main
from score_jax.rl import rollout
from score_jax.stages.train import StageRun

WHAT, MOMENT, STEP = sys.argv[1], sys.argv[2], int(sys.argv[3])


def strike():
    """Does it."""
    print(f"struck: {WHAT}", file=sys.stderr, flush=True)
    if WHAT.startswith("SLEEP:"):
        time.sleep(float(WHAT.partition(":")[2]))
    elif WHAT == "FULL":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    elif WHAT == "HANG":
        for child in psutil.Process().children():
            if "score_jax.tasks.grading.worker" in child.cmdline():
                child.suspend()
    else:
        os.kill(os.getpid(), signal.Signals[f"SIG{WHAT}"])


def before(function, due):
    """The function, with the blow before the call of which `due(*args)`."""

    def call(*args, **options):
        if due(*args):
            strike()
        return function(*args, **options)

    return call


def arm():
    """Lays the trap."""
    stages = []
    run = StageRun.run

    def run_struck(stage, learn):
        stages.append(stage)

        def learn_struck(stage, step):
            fetch = learn(stage, step)
            if MOMENT == "update" and step == STEP - 1:
                stage.checkpoints.wait()
                strike()
            return fetch

        run(stage, learn_struck)

    StageRun.run = run_struck
    if MOMENT == "rollout":
        rollout.Grading.result = before(
            rollout.Grading.result, lambda *_: stages and stages[0].progress.position == STEP - 1
        )


if __name__ == "__main__":
    if WHAT != "NONE":
        arm()
    del sys.argv[1:4]
    main.run()
