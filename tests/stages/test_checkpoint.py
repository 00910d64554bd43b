"""Checkpoints go out and come back bitwise; damaged ones are noticed and passed over."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.stages.checkpoint import Checkpoints, StorageError, fingerprint, first_line
from score_jax.types import Coefficients, TrainState
from tests.tiny_stages import assert_same_tree

REWARDS = {2: 0.25, 4: 0.75, 6: 0.5}


def state_of(step):
    """A state full of numbers that compress badly."""
    rng = np.random.default_rng(step)
    params = {"a": jnp.asarray(rng.normal(size=(64, 48)), jnp.float32), "b": jnp.ones(3) * step}
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        opt_state=jax.tree.map(lambda x: x * 0.5, params),
        baseline=jnp.asarray([0.5, -1.0]),
        coefficients=Coefficients(
            alpha=jnp.float32(step / 3),
            beta=jnp.asarray([0.1, 0.01]) / step,
            kl=jnp.asarray([0.3, 0.2]) * step,
            gain=jnp.float32(0.7),
        ),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder, keep=3) as checkpoints:
        for step, reward in REWARDS.items():
            checkpoints.save(step, state_of(step), {"position": step}, reward)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def reopen(folder, keep=3):
    return Checkpoints(folder, keep=keep)


def test_what_was_saved_comes_back_bitwise(folder):
    with reopen(folder) as checkpoints:
        step, state, extra = checkpoints.restore_latest(state_of(0), print)
        assert (step, extra["position"]) == (6, 6)
        assert_same_tree(state, state_of(6))
        assert_same_tree(checkpoints.restore_params(2, state_of(0)), state_of(2).params)


def test_the_best_by_reward_is_kept_beside_the_latest(folder):
    with reopen(folder, keep=1) as checkpoints:
        assert (checkpoints.best(), checkpoints.score(4)) == (4, 0.75)
        checkpoints.save(8, state_of(8), {}, 0.1)
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best()) == ([4, 8], 4)


def test_one_without_a_reward_is_never_the_best(tmp_path):
    with reopen(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, state_of(1), {}, None)
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best()) == ([1], None)
        checkpoints.save(2, state_of(2), {}, -1.0)
        checkpoints.wait()
        assert checkpoints.best() == 2


def files_of(folder, step):
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file())


def break_file(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[: len(data) // 2] if how == "truncated" else data)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_and_set_aside(folder, how):
    largest = max(files_of(folder, 6), key=lambda path: path.stat().st_size)
    break_file(largest, how)
    said = []
    with reopen(folder) as checkpoints:
        step, state, _ = checkpoints.restore_latest(state_of(0), said.append)
        assert (step, checkpoints.steps()) == (4, [2, 4])
        assert_same_tree(state, state_of(4))
    aside = folder.with_name("unreadable") / "6"
    assert files_of(aside.parent, 6)
    assert len(said) == 1 and "\n" not in said[0]
    assert str(folder / "6") in said[0] and str(aside) in said[0]


def test_any_file_cut_short_is_noticed_or_harmless(written, tmp_path):
    """Whichever file of the newest checkpoint ends early, a whole state comes back."""
    for number, path in enumerate(files_of(written, 6)):
        folder = shutil.copytree(written, tmp_path / str(number) / "checkpoints")
        cut = folder / path.relative_to(written)
        cut.write_bytes(cut.read_bytes()[:-1])
        with reopen(folder) as checkpoints:
            step, state, _ = checkpoints.restore_latest(state_of(0), lambda _: None)
        assert step in (4, 6), path.name
        assert_same_tree(state, state_of(step))


def test_when_none_can_be_read_nothing_is_touched(folder):
    for step in REWARDS:
        for path in files_of(folder, step):
            if path.stat().st_size > 4000:
                break_file(path, "truncated")
    for _ in range(2):  # a second try must not find an empty folder and begin anew
        message = r"none of the checkpoints \[2, 4, 6\] in .* can be read .*backup"
        with reopen(folder) as checkpoints, pytest.raises(StorageError, match=message):
            checkpoints.restore_latest(state_of(0), print)
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["2", "4", "6"]


def test_a_write_that_failed_names_the_last_whole_checkpoint(folder, monkeypatch):
    with reopen(folder) as checkpoints:

        def fail():
            raise ValueError("No space left on device\nand a page of details")

        monkeypatch.setattr(checkpoints.manager, "wait_until_finished", fail)
        with pytest.raises(StorageError) as caught:
            checkpoints.wait()
        monkeypatch.undo()
    message = str(caught.value)
    assert "No space left on device" in message and "details" not in message
    assert "the checkpoint of step 6 is intact: make room" in message


def test_closing_does_not_hide_the_error_that_came_first(folder, monkeypatch):
    checkpoints = reopen(folder)

    def fail():
        raise StorageError("later")

    monkeypatch.setattr(checkpoints, "wait", fail)
    with pytest.raises(KeyError, match="first"), checkpoints:
        raise KeyError("first")
    with pytest.raises(StorageError, match="later"), checkpoints:
        pass
    monkeypatch.undo()
    checkpoints.close()


def test_the_fingerprint_sees_every_bit():
    tree = {"a": np.arange(6.0, dtype=np.float32), "b": np.ones((), np.int32)}
    before = int(fingerprint(tree))
    for place in range(6):
        for bit in range(32):
            bits = tree["a"].view(np.uint32).copy()
            bits[place] ^= np.uint32(1 << bit)
            changed = {**tree, "a": bits.view(np.float32)}
            assert int(fingerprint(changed)) != before


@pytest.mark.parametrize("place", ["", " [source locations='a.cc:1\\nb.cc:2' and more]"])
@pytest.mark.parametrize("depth", [1, 90])
def test_the_cause_of_a_failed_write_is_told_however_long_the_paths(place, depth):
    path = "/deeper" * depth
    text = f'Error writing "a/0.0" at "{path}": Failed to write to "{path}": File too large [27]'
    told = first_line(OSError(f"{text}{place}\nand a page of other things"))
    assert told.startswith('Error writing "a/0.0" at "/deeper')
    assert told.endswith("File too large [27]")
    assert len(told) <= 310 and "\n" not in told
