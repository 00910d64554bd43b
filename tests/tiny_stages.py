"""Stages of a random model of a few thousand parameters, as config and as commands.

A process that runs one is start-up and compilation; the steps take no time.

    python -m score_jax.main --config=tests/tiny_stages.py:stage2 --workdir=DIR
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import base, stage1, stage2
from score_jax.data import store

ROOT = Path(__file__).parent.parent
FILE = "tests/tiny_stages.py"
CACHE = {  # programs of a few thousand parameters compile in less than the usual minimum
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def get_config(name: str = "stage1") -> ConfigDict:
    """One of base, stage1, stage2, made small."""
    config = {"base": base, "stage1": stage1, "stage2": stage2}[name].get_config()
    config.parent = f"{FILE}:stage1" if name == "stage2" else ""
    config.steps = 6
    config.batch = 4
    config.tokenizer.source = "trained"
    config.weights.source = "random"
    config.model = ConfigDict(
        {"vocab_size": 80, "layers": 1, "width": 16, "heads": 2, "kv_heads": 1,
         "head_dim": 8, "mlp_dim": 16}
    )  # fmt: skip
    config.checkpoint.every = 2
    config.evaluation.problems = 8
    config.evaluation.batch = 8
    config.evaluation.samples = 2
    config.log.update({"tensorboard": False, "progress": False})
    config.grading.workers = 1
    config.optimizer.learning_rate = 1e-2
    if name != "base":
        config.task = "tests.short_answers"
        config.sampling.update({"group_size": 2, "turn_limit": 8, "row_limit": 0})
    return config


def command(workdir, *flags, config=f"{FILE}:stage1", program="score_jax.main"):
    """The command line of a run."""
    return ["-m", program, f"--config={config}", f"--workdir={workdir}", *flags]


def launch(arguments, cache, *, variables=None, **options):
    """Starts Python with these arguments, and environment variables, at the repository's root.

    cache: None: the folder that the program itself chooses.
    """
    environment = os.environ | CACHE | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}
    environment = {k: v for k, v in (environment | (variables or {})).items() if v is not None}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(arguments, cache, **options):
    """Runs Python to its end; returns exit code, stdout and stderr."""
    process = launch(arguments, cache, **options)
    out, err = process.communicate()
    return process.returncode, out, err


def refuse(cases, **variables):
    """Exit code and stderr of score_jax.main for each list of flags."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/refused.py"],
        input=json.dumps(cases),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])  # forks may have said something before


def free_port():
    """A port for a coordinator that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def lines(path):
    """The values of a JSONL file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def without_times(rows):
    """Metrics but for those that a clock makes, and those of programs compiled by a start."""
    clock = ("time/", "tokens_per_second/", "compile/", "sample/")  # the last, of steps that drew
    return [{k: v for k, v in row.items() if not k.startswith(clock)} for row in rows]


def kept_dialogues(folder, *without):
    """The values of a stage's kept dialogues by column; arrays as lists of their exact numbers."""
    return [
        {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(dialogue).items()
            if name not in without
        }
        for dialogue in store.read(folder / "rollouts")
    ]


def assert_same_tree(a, b):
    """Bitwise, leaf by leaf."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), f"{name} differs"
