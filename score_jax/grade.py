"""Alias of `python -m score_jax.tasks`, which grades responses from standard input."""

import sys

from score_jax.tasks.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
