"""Another name of `python -m score_jax.tasks`: answers in, verdicts out."""

import sys

from score_jax.tasks.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
