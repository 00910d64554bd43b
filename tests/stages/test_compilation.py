"""Programs kept from one start to the next, and what is counted of them."""

import os
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from score_jax.distributed import processes
from score_jax.distributed.watchdog import Watchdog
from score_jax.stages import compilation
from score_jax.stages.compilation import Compilations, Compiled, cache_folder, keep_programs
from score_jax.stages.train import StageRun
from tests.stage_configs import train
from tests.tiny_stages import lines

DEFAULTS = {compilation.FOLDER: None, compilation.SECONDS: 1.0, compilation.ENABLED: True}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where keep_programs keeps them; JAX's settings are the usual ones, and come back later."""
    before = {name: jax.config.values[name] for name in DEFAULTS}
    for name, value in DEFAULTS.items():
        jax.config.update(name, value)
    monkeypatch.delenv(compilation.SECONDS.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "score_jax/programs"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def settings():
    return [jax.config.values[name] for name in (compilation.FOLDER, compilation.SECONDS)]


@pytest.mark.parametrize("told", ["", "some/folder"], ids=["unset", "relative"])
def test_without_a_cache_folder_of_its_own_the_home_folder_has_one(monkeypatch, told):
    monkeypatch.setenv("XDG_CACHE_HOME", told)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(cache_folder()) == "/home/somebody/.cache/score_jax/programs"


def test_programs_are_kept_below_the_users_cache_folder(folder):
    keep_programs()
    assert settings() == [str(folder), 0.1] and folder.is_dir()


@pytest.mark.parametrize("value", ["/elsewhere", ""])
def test_a_folder_that_jax_was_told_stays(folder, value):
    jax.config.update(compilation.FOLDER, value)
    keep_programs()
    assert settings() == [value, 1.0] and not folder.exists()


def test_jax_may_be_told_to_keep_none(folder):
    jax.config.update(compilation.ENABLED, False)
    keep_programs()
    assert settings() == [None, 1.0] and not folder.exists()


def test_jax_may_be_told_which_are_worth_a_file(folder, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    keep_programs()
    assert settings() == [str(folder), 1.0]


def test_several_hosts_keep_none(folder, monkeypatch):
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    keep_programs()
    assert settings() == [None, 1.0] and not folder.exists()


def homeless():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("trouble", ["a file", "no home", "read only", "full"])
def test_a_folder_that_cannot_be_written_is_told_and_not_used(folder, trouble, monkeypatch, capsys):
    if trouble == "a file":
        folder.parent.write_text("")
    elif trouble == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(compilation.Path, "home", homeless)
    elif trouble == "read only":
        folder.mkdir(parents=True)
        folder.chmod(0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
    else:
        usage = SimpleNamespace(free=100 << 20)
        monkeypatch.setattr(compilation.shutil, "disk_usage", lambda path: usage)
    keep_programs()
    assert settings() == [None, 1.0]
    assert re.fullmatch(r"compiled programs are not kept: .+\n", capsys.readouterr().out)


def test_what_is_a_month_old_or_empty_is_deleted(folder):
    folder.mkdir(parents=True)
    now = folder.stat().st_mtime
    for name, days in (("new-cache", 29), ("old-cache", 31), ("empty-cache", 0), ("other", 31)):
        (folder / name).write_text("" if name == "empty-cache" else "program")
        os.utime(folder / name, (now, now - days * 86400))
    keep_programs()
    assert sorted(path.name for path in folder.iterdir()) == ["new-cache", "other"]


def doubling():
    """A program that no test before has compiled."""

    def double(x):
        return x + x

    return jax.jit(double)


def ones(size):
    return jax.device_put(np.ones(size, np.float32))


def test_a_program_is_counted_once_for_each_shape_and_only_while_somebody_counts():
    double = doubling()
    with Compilations() as compilations:
        double(ones(3)), double(ones(3)), double(ones(4))
        found = compilations.take()
        double(ones(4))
        later = compilations.take()
    double(ones(5))
    assert found.names == ["jit(double)"] * 2 and found.seconds > 0
    assert found.metrics() == {"compile/programs": 2, "compile/seconds": found.seconds}
    assert later.metrics() == {"compile/programs": 0, "compile/seconds": 0}
    assert compilations.take().names == []


def test_what_was_read_is_counted_apart_and_half_a_file_is_not_read(folder, monkeypatch):
    monkeypatch.setenv(compilation.SECONDS.upper(), "0")
    jax.config.update(compilation.SECONDS, 0.0)
    keep_programs()
    compilation_cache.reset_cache()

    def start():
        with Compilations() as compilations:
            assert doubling()(ones(3)).tolist() == [2, 2, 2]
            found = compilations.take()
        said = rf"compiled 1 programs in \d+\.\d s, {found.read} of them read from {folder}"
        assert re.fullmatch(said, found.describe())
        return found.read

    assert [start(), start()] == [0, 1]
    (file,) = folder.glob("jit_double-*-cache")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
        assert start() == 0


def test_without_a_folder_nothing_is_said_of_one(folder):
    assert Compiled(["jit(f)"], 0, 1.5).describe() == "compiled 1 programs in 1.5 s"


def test_a_step_that_compiles_what_earlier_ones_did_not_is_named_once():
    said, double = [], doubling()
    stage = object.__new__(StageRun)
    stage.watchdog, stage.log = Watchdog(), SimpleNamespace(message=said.append)
    with Compilations() as stage.compilations:
        for step, size in enumerate((3, 3, 4, 4, 5), 1):
            stage.enter_phase("sample", step)
            stage.enter_phase("update", step)
            double(ones(size))
        stage.enter_phase("save", 5)
        jax.jit(lambda x: x - 1)(ones(3))  # of the first checkpoint
        stage.enter_phase("sample", 6)
    assert [text.partition(",")[0] for text in said] == ["update of step 3: compiled jit(double)"]


@pytest.mark.parametrize(("name", "expected"), [("stage1", {1, 4}), ("base", {1})])
def test_steps_compile_nothing_but_for_the_first_and_the_first_validation(
    tmp_path, compiled, capsys, name, expected
):
    options = {"evaluation__every": 4} if name == "stage1" else {}
    train(tmp_path, name, checkpoint__every=6, evaluation__samples=0, **options)
    rows = lines(tmp_path / name / "metrics.jsonl")
    assert {row["step"] for row in rows if row["compile/programs"]} == expected
    assert {row["step"] for row in rows if row["compile/seconds"]} == expected
    said = capsys.readouterr().err
    assert said.count(f"[{name}] compiled ") == 1 and "not needed in earlier steps" not in said
