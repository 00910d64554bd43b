"""Runs score_jax.main once for each command line on stdin, each in a fork of this process.

Takes a JSON list of lists of flags; prints one of [exit code, stderr]. Forks spare the
import of jax, whose threads start with its first computation and not before.
"""

import json
import os
import sys
import tempfile

from score_jax import main


def refuse(flags):
    """One command's exit code and stderr."""
    with tempfile.TemporaryFile("w+") as told:
        child = os.fork()
        if not child:
            os.dup2(told.fileno(), 2)
            sys.argv = ["main.py", *flags]
            main.run()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told.seek(0)
        return code, told.read()


if __name__ == "__main__":
    cases = json.load(sys.stdin)
    sys.stdout.flush()
    print(json.dumps([refuse(case) for case in cases]))
