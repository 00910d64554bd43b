"""Chains of tiny stages, run in this process."""

from pathlib import Path

from score_jax.stages.chain import run_mode
from score_jax.stages.resolve import resolve_stages
from tests.guarded import guarded_steps
from tests.tiny_stages import FILE, get_config


def stages(name="stage1", *, shared=True, **fields):
    """A chain as main makes it, with fields changed as a command line does: a__b for a.b.

    shared=False: as if they stood in the last stage's file, out of reach of its parents.
    """
    config = get_config(name)
    overrides = {path.replace("__", "."): value for path, value in fields.items()}
    config.update_from_flattened_dict(overrides)
    return resolve_stages(config, overrides if shared else {})


def train(workdir, name="stage1", mode="train", prompt="", **fields):
    """Runs a chain in this process, its steps under the transfer guard."""
    options = {"config": f"{FILE}:{name}", "command": "", "prompt": prompt}
    with guarded_steps():
        run_mode(mode, stages(name, **fields), Path(workdir), **options)
