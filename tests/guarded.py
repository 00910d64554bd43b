"""Steps under a guard: no array moves between host and device unless the code asks for it.

`jax.transfer_guard("disallow")` lets `jax.device_put` and `jax.device_get` pass and raises
on the rest: a numpy array or a Python number that goes into a jitted function, `jnp.zeros`
or `x[0]` outside of one. What a program closes over is its constant, not a transfer. On a
CPU nothing is copied towards the host, so that `float(x)` or `np.asarray(x)` raise on
accelerators only.

    python -m tests.guarded --config=... --workdir=...

is `python -m score_jax.main` with all steps under the guard.
"""

from contextlib import contextmanager
from functools import wraps

import jax

from score_jax import main
from score_jax.stages.train import StageRun


def guarded(function):
    """The function; its arguments are put on the device, then nothing else moves."""

    @wraps(function)
    def call(*arguments):
        arguments = jax.device_put(arguments)
        with jax.transfer_guard("disallow"):
            return function(*arguments)

    return call


@contextmanager
def guarded_steps():
    """Every stage that runs in here runs its steps, their looks and checkpoints, under the guard.

    What stands before the first step makes parameters and keys from numbers of the host.
    """
    run = StageRun.run

    def call(stage, learn):
        with jax.transfer_guard("disallow"):
            run(stage, learn)

    StageRun.run = call
    try:
        yield
    finally:
        StageRun.run = run


if __name__ == "__main__":
    with guarded_steps():
        main.run()
