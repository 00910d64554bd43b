"""Whole runs: ended by signals, begun again, and refused."""

import errno
import json
import os
import re
import resource
from pathlib import Path

import jax.numpy as jnp
import pytest
from jax.errors import JaxRuntimeError

from score_jax import main
from score_jax.stages import resolve
from score_jax.stages.build import build
from score_jax.stages.handoff import open_checkpoints
from score_jax.stages.train import TrainingError
from tests import tiny_stages
from tests.stage_configs import stages
from tests.tiny_stages import ROOT, command, finish, lines, refuse

INTERRUPTED = str(ROOT / "tests/interrupted.py")
STEPS = 6


def interrupt(number, moment, step, workdir, cache):
    flags = command(workdir)[2:]
    environment = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(environment)
    try:
        return finish([INTERRUPTED, number, moment, step, *flags], cache)
    finally:
        os.environ["PYTHONPATH"] = os.pathsep.join(environment[1:])


def saved(workdir):
    """Every checkpoint of Stage I: its state, what stands beside it, its reward."""
    stage = stages()[-1]
    like = build(stage.settings).abstract_state()
    with open_checkpoints(stage.settings, workdir / "stage1") as checkpoints:
        return {
            step: (*checkpoints.restore(step, like), checkpoints.score(step))
            for step in checkpoints.steps()
        }


def assert_same_run(workdir, other):
    """Bitwise the same checkpoints; the same lines and dialogues but for what a clock says."""
    ours, theirs = saved(workdir), saved(other)
    shared = sorted(set(ours) & set(theirs))  # one that a signal asked for displaces another
    assert shared[-1] == STEPS
    for step in shared:
        state, extra, reward = ours[step]
        tiny_stages.assert_same_tree(state, theirs[step][0])
        assert (extra, reward) == theirs[step][1:]
    rows = [
        tiny_stages.without_times(lines(folder / "stage1/metrics.jsonl"))
        for folder in (workdir, other)
    ]
    assert rows[0] == rows[1]
    kept = [tiny_stages.kept_dialogues(folder / "stage1") for folder in (workdir, other)]
    assert kept[0] == kept[1] and kept[0]
    evaluations = [
        json.loads((folder / "stage1/evaluation.json").read_text()) for folder in (workdir, other)
    ]
    assert evaluations[0] == evaluations[1]
    assert evaluations[0]["step"] in shared


@pytest.fixture(scope="module")
def interruptions(cache, tmp_path_factory):
    """One run, ended in turn at each moment, each time by the same command, then let run."""
    workdir = tmp_path_factory.mktemp("interrupted")
    told = [
        (moment, *interrupt(*moment, workdir, cache))
        for moment in (
            ("SIGKILL", "rollout", 2),
            ("SIGKILL", "update", 4),
            ("SIGKILL", "save", 4),
            ("SIGTERM", "update", 5),
            ("SIGTERM", "rollout", 6),
        )
    ]
    return workdir, told, finish(command(workdir), cache)


def test_the_trial_run_learns_something(finished_run):
    rows = lines(finished_run / "stage1/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row["gradient_norm"] > 1e-3 for row in rows)
    assert len({row["reward/turn2"] for row in rows}) > 1


def test_a_run_killed_at_three_moments_ends_as_an_uninterrupted_one(
    interruptions, finished_run, compiled
):
    workdir, told, (code, _, err) = interruptions
    assert [code for (number, *_), code, _, _ in told if number == "SIGKILL"] == [-9] * 3
    assert code == 0, err
    assert_same_run(workdir, finished_run)


@pytest.mark.skipif(bool(os.environ.get("JAX_COMPILATION_CACHE_DIR")), reason="no user's folder")
def test_a_second_start_reads_all_programs_and_computes_the_same(
    finished_run, compiled, cache, tmp_path
):
    """From the user's cache folder, where the finished run's programs lie."""
    variables = {"XDG_CACHE_HOME": str(Path(cache).parent.parent)}
    code, _, err = finish(command(tmp_path), None, variables=variables)
    assert code == 0, err
    said = r"\[stage1\] compiled (\d+) programs in .+ s, (\d+) of them read from (.+)"
    found = re.search(said, err)
    assert found and int(found[1]) == int(found[2]) > 5 and found[3] == cache, err
    assert_same_run(tmp_path, finished_run)


def test_sigterm_saves_and_says_so_in_one_line(interruptions):
    _, told, _ = interruptions
    for _, code, _, err in told[-2:]:
        assert code == 143
        assert err.splitlines()[-1] == (
            "stopped: SIGTERM at step 5 of 6: saved; the same command goes on from here"
        )
        assert "Traceback" not in err


def test_a_rollout_is_kept_from_one_run_to_the_next(interruptions):
    _, told, (_, _, resumed) = interruptions
    assert "saved rollout" not in told[-1][3]
    assert "goes on from the checkpoint of step 5 of 6" in resumed
    assert "uses the saved rollout of step 6" in resumed


def test_a_killed_run_goes_on_from_what_was_saved(interruptions):
    _, told, _ = interruptions
    stderr = [err for *_, err in told]
    assert "goes on" not in stderr[0] + stderr[1]  # killed before any checkpoint: begins anew
    assert "goes on from the checkpoint of step 2 of 6" in stderr[2]
    assert "goes on from the checkpoint of step 2 of 6" in stderr[3]


MISSPELT = """
from configs import common

def get_config():
    config = common.get_config()
    config.name = "misspelt"
    {line}
    return config
"""
STAGE2 = "--config=configs/stage2.py"
REFUSED = {  # flags, and what stderr says, each in one line with exit code 2
    "misspelt override": ([STAGE2, "--config.objective.alhpa=3"], r"no field 'alhpa' .*\"alpha\""),
    "misspelt at the top": ([STAGE2, "--config.stepz=3"], r"no field 'stepz' .*\"steps\""),
    "no such data field": ([STAGE2, "--config.data.bogus=1"], r"no field 'bogus'"),
    "misspelt in a file": (["{nested}"], r"no field 'optimiser' .*\"optimizer\""),
    "misspelt new field": (["{top}"], r"config.stpes is no field of the config; .* steps\?"),
    "in the parent's file": ([STAGE2, "--config.parent={parent}"], r"parent '.*': .*'optimiser'"),
    "a former name": (
        [STAGE2, "--config.mesh.swing=2"],
        r"it is --config.mesh.sampling_tensor now",
    ),
    "a former name in a file": (
        ["{former}"],
        r"config.sampling.spans is no field .* it is sampling",
    ),
    "not a config": (["--config=README.md"], r"README.md, line \d+"),
    "negative alpha": ([STAGE2, "--config.objective.alpha=-1"], r"objective.alpha is -1.0; set a"),
    "wrong type": ([STAGE2, "--config.steps=many"], r"--config.steps=many: invalid .* int"),
    "no samples": (
        [STAGE2, "--config.sampling.group_size=0"],
        r"group_size is 0; set at least",
    ),
    "no such preset": ([f"{STAGE2}:nosuch"], r"preset is 'nosuch'; choose one of smollm2_135m"),
    "no such file": (["--config=configs/nosuch.py"], r"No such file .*: 'configs/nosuch.py'"),
    "no such parent": ([STAGE2, "--config.parent=configs/no.py"], r"there is no file configs/no"),
    "no number": ([STAGE2, "--config.objective.alpha=None"], r"objective.alpha is None; set a fin"),
    "nan in a tuple": ([STAGE2, "--config.objective.beta=(1.0,nan)"], r"objective.beta is .*; set"),
    "an endless rate": (
        [STAGE2, "--config.optimizer.learning_rate=inf"],
        r"rate is inf; set a value > 0",
    ),
    "a negative seed": ([STAGE2, "--config.seed=-1"], r"config.seed is -1; set a value in 0.."),
    "a seed too large": ([STAGE2, f"--config.seed={10**20}"], r"config.seed is 10{20}; set"),
    "out of the workdir": ([STAGE2, "--config.name=../x"], r"config.name is '../x'; it names a"),
    "None of no field": ([STAGE2, "--config.estimator.clop=None"], r"no field 'clop' .*\"clip\""),
    "a circle": ([STAGE2, "--config.parent=configs/stage2.py"], r"circle: stage2 -> stage2"),
    "no such mode": ([STAGE2, "--mode=fly"], r"--mode=fly: value should be one of <train\|eval"),
    "no such flag": ([STAGE2, "--wrokdir=x"], r"flag 'wrokdir'. Did you mean: workdir"),
    "bench of no rollouts": (
        ["--config=configs/base.py", "--mode=bench"],
        r"'supervised'; --mode=bench measures rl stages",
    ),
    "bench without repeats": (
        [STAGE2, "--mode=bench", "--repeats=0"],
        r"--repeats=0: 0 is not a positive",
    ),
    "stray word": ([STAGE2, "stray"], r"unknown arguments: stray; write --name=value"),
    "no config": ([], r"--config is missing; set it to a file such as configs/stage2.py"),
    "nothing to report": ([STAGE2, "--mode=report", "--workdir={empty}"], r"workdir is .* train"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Exit code and stderr of each of REFUSED."""
    folder = tmp_path_factory.mktemp("refused")
    lines = {"nested": "config.optimiser.kind = 'adam'", "top": "config.stpes = 3"}
    lines["former"] = "config.sampling.spans = 4"
    places = {"empty": folder / "empty", "parent": folder / "nested.py"}
    for name, line in lines.items():
        (folder / f"{name}.py").write_text(MISSPELT.format(line=line))
        places[name] = f"--config={folder / name}.py"
    cases = [[flag.format(**places) for flag in flags] for flags, _ in REFUSED.values()]
    told = refuse(cases)
    assert not (folder / "empty").exists()
    return dict(zip(REFUSED, told, strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_told_in_one_line(refusals, case):
    code, err = refusals[case]
    assert code == 2, err
    assert len(err.splitlines()) == 1 and err.startswith("error: ")
    assert re.search(REFUSED[case][1], err), err


NAMING = """
from configs import stage2

def get_config():
    config = stage2.get_config()
    config.name, config.parent, config.seed = "{name}", "{parent}", {seed}
    return config
"""


def write_config(path, name, parent, seed=0):
    path.parent.mkdir(exist_ok=True)
    path.write_text(NAMING.format(name=name, parent=parent, seed=seed))


def chain_of(path, **overrides):
    config = resolve.load_config(str(path))
    config.update_from_flattened_dict(overrides)
    return [stage.settings for stage in resolve.resolve_stages(config, overrides, str(path))]


def test_a_parent_is_found_beside_the_file_that_names_it(tmp_path, monkeypatch):
    """Not where the command happens to be started, and so on up the chain."""
    write_config(tmp_path / "mine/child.py", "child", "mother.py")
    write_config(tmp_path / "mine/mother.py", "mother", "../other/first.py")
    write_config(tmp_path / "other/first.py", "first", "", seed=7)
    write_config(tmp_path / "elsewhere/mother.py", "stranger", "")
    for folder in ("elsewhere", "mine", "."):
        monkeypatch.chdir(tmp_path / folder)
        chain = chain_of(tmp_path / "mine/child.py")
        assert [(s.name, s.seed) for s in chain] == [("first", 7), ("mother", 0), ("child", 0)]


def test_a_parent_counts_from_the_folder_above_or_from_here_if_none_is_beside(
    tmp_path, monkeypatch
):
    write_config(tmp_path / "configs/child.py", "child", "configs/mother.py")
    write_config(tmp_path / "configs/mother.py", "mother", "")
    write_config(tmp_path / "here/mother.py", "typed", "")
    write_config(tmp_path / "here/far.py", "far", "")
    monkeypatch.chdir(tmp_path / "here")
    assert [s.name for s in chain_of(tmp_path / "configs/child.py")] == ["mother", "child"]
    write_config(tmp_path / "configs/child.py", "child", "far.py")
    assert [s.name for s in chain_of(tmp_path / "configs/child.py")] == ["far", "child"]
    write_config(tmp_path / "configs/child.py", "child", str(tmp_path / "here/far.py"))
    assert [s.name for s in chain_of(tmp_path / "configs/child.py")] == ["far", "child"]
    typed = chain_of(tmp_path / "configs/child.py", parent="mother.py")
    assert [s.name for s in typed] == ["typed", "child"]


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["--config.estimator.clip=None"], {"estimator.clip": None}),
        (["-config.model=None"], {"model": None}),
        (["--config.a=None", "--config.b.c=None"], {"a": None, "b.c": None}),
        (["--config.a=1", "--config.a=None"], {"a": None}),
        (["--config.a=None", "--config.a=1"], {}),
        (["--config=None", "--workdir=None", "--config.a=none"], {}),
    ],
)
def test_what_a_command_line_sets_to_none(argv, found):
    assert main.null_overrides(argv) == found


def few_bytes():
    """No file of this process may grow longer: a disk that has just become full.

    Room for the lines of eight steps, and none for the arrays of a checkpoint.
    """
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_500, 16_500))


def test_a_full_disk_loses_nothing(workdir, cache):
    flags = ["--config.steps=8", "--config.evaluation.problems=4"]
    code, _, err = finish(command(workdir, *flags), cache, preexec_fn=few_bytes)
    last = err.splitlines()[-1]
    assert code == 1, err
    assert "Traceback" not in err
    assert "could not be written" in last and "checkpoint of step 6 is intact: make room" in last
    code, _, err = finish(command(workdir, *flags), cache)
    assert code == 0, err
    assert "goes on from the checkpoint of step 6 of 8" in err
    assert [row["step"] for row in lines(workdir / "stage1/metrics.jsonl")] == list(range(1, 9))


def test_overrides_of_shared_fields_reach_the_parents_and_others_do_not():
    first, second = stages(
        "stage2",
        seed=5,
        evaluation__problems=4,
        data__count=64,
        log__rollouts=1,
        steps=9,
        optimizer__learning_rate=0.5,
        objective__alpha=3.0,
        checkpoint__every=3,
    )
    assert (first.settings.name, second.settings.name) == ("stage1", "stage2")
    for settings in (first.settings, second.settings):
        assert settings.seed == 5
        assert settings.evaluation.problems == 4
        assert dict(settings.data)["count"] == 64
        assert settings.log.rollouts == 1
    assert (second.settings.steps, first.settings.steps) == (9, 6)
    assert (second.settings.optimizer.learning_rate, second.settings.checkpoint.every) == (0.5, 3)
    assert (first.settings.optimizer.learning_rate, first.settings.checkpoint.every) == (1e-2, 2)
    assert (second.settings.objective.alpha, first.settings.objective.alpha) == (3.0, 0.0)


def test_a_defect_of_ours_is_not_called_a_mistake(monkeypatch, capsys):
    """What a library raises goes on with its traceback; what we raise is one line."""

    def fail(error):
        def call(*_, **__):
            raise error

        return call

    monkeypatch.setattr(main.app, "run", lambda *_, **__: json.loads("{"))
    with pytest.raises(ValueError, match="Expecting"):
        main.run()
    for error in (KeyError("x"), TypeError("x"), AttributeError("x")):
        monkeypatch.setattr(main.app, "run", fail(error))
        with pytest.raises(type(error)):
            main.run()
    monkeypatch.setattr(main.app, "run", fail(TrainingError("step 3: a\nb")))
    with pytest.raises(SystemExit) as end:
        main.run()
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: step 3: a b")
    monkeypatch.setattr(main.app, "run", fail(OSError(errno.ENOSPC, "No space left", "a.jsonl")))
    with pytest.raises(SystemExit) as end:
        main.run()
    assert end.value.code == 1
    assert "a.jsonl'; make room and run the same command again" in capsys.readouterr().err


def test_a_full_device_says_what_to_change(monkeypatch, capsys):
    """An array of a petabyte; other errors of the runtime are no such thing."""
    monkeypatch.setattr(main.app, "run", lambda *_, **__: jnp.zeros(2**50, jnp.int8))
    with pytest.raises(SystemExit) as end:
        main.run()
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: the device's memory is full (RESOURCE_EXHAUSTED: Out of memory")
    assert "learner.microbatches" in told and "compute.remat=full" in told

    def fail(*_, **__):
        raise JaxRuntimeError("INTERNAL: x")

    monkeypatch.setattr(main.app, "run", fail)
    with pytest.raises(JaxRuntimeError, match="INTERNAL"):
        main.run()
