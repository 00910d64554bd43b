"""Annotated shapes are those that the programs of every objective have."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.tiny_stages import ROOT


@pytest.mark.skipif(importlib.util.find_spec("beartype") is None, reason="needs beartype")
def test_annotated_shapes_hold_in_every_program():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    script = str(ROOT / "tests/shapes_checked.py")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = done.stdout.splitlines()
    assert len(told) == 7 and all(line.startswith("traced") for line in told[:-1])
    assert told[-1] == "noticed"  # a wrong shape is told
