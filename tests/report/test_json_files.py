"""JSON files are replaced as a whole, and reading them needs no JAX."""

import subprocess
import sys

import pytest

from score_jax.report.json_files import read_json, write_json


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "deep/value.json"
    assert read_json(path) is None
    write_json(path, {"a": "é"})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": "é"}


@pytest.mark.parametrize("module", ["report.compare", "report.json_files", "report.page", "grade"])
def test_what_only_reads_files_loads_no_jax(module):
    """A table of runs is made where no accelerator and none of its libraries are."""
    code = f"import sys, score_jax.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "jaxlib", "flax", "orbax", "optax"} & set(done.stdout.split())
