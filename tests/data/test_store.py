"""The store: nothing is lost, nothing is half there, and files of others are refused."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from score_jax.data import store
from score_jax.records import Grade, Problem

RIGHT = Grade(verdict="correct", reward=1.0, extracted="4", detail="")
WRONG = Grade(verdict="wrong", reward=0.0, extracted="5", detail="")
FAILED = Grade(verdict="unparsable", reward=0.25, detail="no final answer")

# The row of types.py: a prompt, a given attempt, an instruction, a drawn attempt.
GIVEN_THEN_DRAWN = {
    "tokens": np.array([7, 7, 8, 9, 1, 3, 3, 5, 6, 1], np.int32),
    "turn": np.array([0, 0, 1, 1, 1, 0, 0, 2, 2, 2], np.int32),
    "sampled": np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1], bool),
    "trained": np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 0], bool),
    "logprobs": np.array([0, 0, 0, 0, 0, 0, 0, -0.1, -2.5e-8, -np.inf], np.float32),
    "present": np.array([True, True]),
    "truncated": np.array([False, True]),
    "rewards": np.array([0, 1], np.float32),
}


def dialogue(step=3, row=0, **fields):
    texts = {
        "stage": "stage1",
        "problem": "p-1",
        "task": "math",
        "prompt": "2 + 2?\n",
        "answer": "4",
        "attempts": ("5", "√16 = 4 🙂"),
        "verdicts": ("wrong", "correct"),
        "extracted": ("5", None),
        "details": ("", "π"),
    }
    ids = {"problem_index": 5, "draw": 2**31 - 1, "sample": 1, "attempt": 0, "policy_step": 3}
    given = texts | ids | GIVEN_THEN_DRAWN | fields
    return store.StoredDialogue(step=step, row=row, **given)


def answered(*rewards, present=None):
    """A dialogue whose turns earned these rewards."""
    present = np.array([True] * len(rewards) if present is None else present)
    return dialogue(rewards=np.array(rewards, np.float32), present=present)


def assert_same(one, other):
    for field in dataclasses.fields(store.StoredDialogue):
        found, wanted = getattr(one, field.name), getattr(other, field.name)
        assert type(found) is type(wanted), field.name
        if isinstance(wanted, np.ndarray):
            assert found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes(), field.name
        else:
            assert found == wanted, field.name


def places(dialogues):
    return [(one.step, one.row) for one in dialogues]


def test_what_is_read_is_what_was_written(tmp_path):
    written = [
        dialogue(row=0),
        dialogue(  # without a second turn
            row=1,
            present=np.array([True, False]),
            attempts=("5", ""),
            verdicts=("timeout", None),
            extracted=(None, None),
            details=("late", None),
            rewards=np.array([0.1, 0], np.float32),
        ),
        dialogue(  # without a token
            row=2,
            **{name: GIVEN_THEN_DRAWN[name][:0] for name in store.OF_TOKENS},
        ),
        dialogue(  # with one turn in all
            row=3,
            **{name: GIVEN_THEN_DRAWN[name][:1] for name in store.OF_TURNS},
            attempts=("",),
            verdicts=("crashed",),
            extracted=("",),
            details=("\0\n",),
        ),
    ]
    path = store.write(tmp_path / "a" / "rollouts", written, step=3, host=12, mark="ü")
    assert path.name == "step-00000003.host-012.arrow"
    found = list(store.read(str(path.parent)))
    assert len(found) == 4
    for one, other in zip(found, written, strict=True):
        assert_same(one, other)
    assert store.size_bytes(path.parent) == path.stat().st_size


def test_plain_arrow_reads_a_file(tmp_path):
    path = store.write(tmp_path, [dialogue(row=1), dialogue(row=0)], step=3, mark="abc")
    with pa.ipc.open_file(path) as reader:
        table = reader.read_all()
    assert table.schema.metadata == {b"version": b"1", b"step": b"3", b"mark": b"abc"}
    assert table["row"].to_pylist() == [0, 1]
    first = table.to_pylist()[0]
    assert first["turn"] == [0, 0, 1, 1, 1, 0, 0, 2, 2, 2]
    assert first["trained"] == [False] * 7 + [True, True, False]
    assert first["verdicts"] == ["wrong", "correct"] and first["extracted"] == ["5", None]
    assert set(table.column_names) == {f.name for f in dataclasses.fields(store.StoredDialogue)}


def test_half_of_a_surrogate_pair_does_not_end_a_run(tmp_path):
    store.write(tmp_path, [dialogue(details=("\ud800!", None))], step=3)
    assert next(store.read(tmp_path)).details == ("\\ud800!", None)


def test_a_dialogue_of_another_step_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="not all dialogues are of step 4"):
        store.write(tmp_path, [dialogue(step=3)], step=4)


def test_an_array_that_its_column_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="4294967296"):
        store.write(tmp_path, [dialogue(tokens=np.array([2**32]))], step=3)
    assert store.steps(tmp_path) == []


def test_dialogues_come_by_step_and_row_and_once(tmp_path):
    def named(host, step, *rows):
        mine = [dialogue(step, row, task=f"host {host}") for row in rows]
        store.write(tmp_path, mine, step=step, host=host)

    named(10, 9, 0, 7)
    named(1, 10, 3, 1)
    named(2, 9, 2, 1, 0)
    named(0, 10, 2, 0, 1)
    named(0, 100, 0)
    assert store.steps(tmp_path) == [9, 10, 100]
    found = list(store.read(tmp_path))
    nine, ten = [(9, 0), (9, 1), (9, 2), (9, 7)], [(10, 0), (10, 1), (10, 2), (10, 3)]
    assert places(found) == [*nine, *ten, (100, 0)]
    assert [one.task for one in found[:4]] == ["host 2", "host 2", "host 2", "host 10"]
    assert [one.task for one in found[4:8]] == ["host 0", "host 0", "host 0", "host 1"]
    assert places(store.read(tmp_path, steps=range(10, 101))) == [*ten, (100, 0)]
    assert places(store.read_step(tmp_path, 9)) == nine


def test_a_missing_folder_and_an_empty_step_hold_nothing(tmp_path):
    nowhere = tmp_path / "none"
    assert store.steps(nowhere) == [] and list(store.read(nowhere)) == []
    assert store.read_step(nowhere, 0) is None and store.size_bytes(nowhere) == 0
    store.drop_from(nowhere, 0)
    assert not nowhere.exists()
    store.write(nowhere, [], step=4)
    assert store.read_step(nowhere, 4) == [] and list(store.read(nowhere)) == []


def test_files_of_others_are_ignored(tmp_path):
    for name in (
        "step-00000001.host-000.partial",
        "step-1.arrow",
        "notes.txt",
        "step-x.host-0.arrow",
    ):
        (tmp_path / name).write_bytes(b"half")
    assert store.steps(tmp_path) == [] and list(store.read(tmp_path)) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_earlier_steps(tmp_path, monkeypatch, call):
    store.write(tmp_path, [dialogue(0)], step=0)

    def stop(*_):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, stop)
        with pytest.raises(OSError, match="no space"):
            store.write(tmp_path, [dialogue(1)], step=1)
    assert places(store.read(tmp_path)) == [(0, 0)]
    assert len(list(tmp_path.iterdir())) == 2  # with the partial file
    store.write(tmp_path, [dialogue(1)], step=1)
    assert places(store.read(tmp_path)) == [(0, 0), (1, 0)]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (calls.append(n), r(*a)))
    store.write(tmp_path, [dialogue()], step=3)
    assert calls == ["fsync", "replace", "fsync"]  # the bytes; the name; the folder's names


WRITER = """
import itertools, sys
import numpy as np
from score_jax.data import store
[one] = store.read(sys.argv[1])
for step in itertools.count(1):
    store.write(sys.argv[1], [type(one)(**vars(one) | {"step": step})] * 200, step=step)
"""


def test_a_killed_writer_leaves_whole_files_only(tmp_path):
    store.write(tmp_path, [dialogue(0, tokens=np.arange(10**4))], step=0)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while len(store.steps(tmp_path)) < 4:
            assert writer.poll() is None and time.monotonic() < deadline
            places(store.read(tmp_path))  # while it writes
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    found = store.steps(tmp_path)
    assert places(store.read(tmp_path)) == [(step, 0) for step in range(len(found))]


def test_a_reader_never_sees_half_a_step(tmp_path):
    def write():
        for step in range(30):
            store.write(tmp_path, [dialogue(step, row) for row in range(5)], step=step)

    writer = threading.Thread(target=write)
    writer.start()
    running, seen = True, []
    while running:
        running = writer.is_alive()
        found = places(store.read(tmp_path))
        whole = sorted({step for step, _ in found})
        assert found == [(step, row) for step in whole for row in range(5)]
        assert set(seen) <= set(whole)
        seen = whole
    writer.join()
    assert seen == list(range(30))


def damage(data, kind):
    if kind == "cut":
        return data[: len(data) // 2]
    if kind == "flipped":
        middle = len(data) // 3
        return (
            data[:middle]
            + bytes(255 - byte for byte in data[middle : 2 * middle])
            + data[2 * middle :]
        )
    return {"empty": b"", "garbage": b"ARROW1\0\0" + b"\x7f" * 500 + b"ARROW1"}[kind]


@pytest.mark.parametrize("kind", ["cut", "empty", "garbage", "flipped"])
def test_a_damaged_file_is_named_or_skipped(tmp_path, kind):
    for step in (0, 1, 2):
        path = store.write(tmp_path, [dialogue(step)], step=step)
        if step == 1:
            path.write_bytes(damage(path.read_bytes(), kind))
            bad = path
    reading = store.read(tmp_path)
    assert next(reading).step == 0
    with pytest.raises(ValueError, match=r"step-00000001\.host-000\.arrow is damaged .* move it"):
        next(reading)
    with pytest.raises(ValueError, match="damaged"):
        store.read_step(tmp_path, 1)
    messages = []
    assert places(store.read(tmp_path, log=messages.append)) == [(0, 0), (2, 0)]
    assert len(messages) == 1 and messages[0].startswith(f"skipped: {bad} is damaged")


def test_one_hosts_damaged_file_leaves_the_others_rows(tmp_path):
    store.write(tmp_path, [dialogue(row=0)], step=3, host=0).write_bytes(b"")
    store.write(tmp_path, [dialogue(row=1)], step=3, host=1)
    assert places(store.read(tmp_path, log=lambda message: None)) == [(3, 1)]


def test_no_flipped_byte_ends_the_reader(tmp_path):
    path = store.write(tmp_path, [dialogue()], step=3)
    data = path.read_bytes()
    for place in range(0, len(data), 37):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
        assert len(list(store.read(tmp_path, log=str))) <= 1


def test_a_file_of_another_version_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "VERSION", "2")
        path = store.write(tmp_path, [dialogue()], step=3)
    wanted = (
        r"host-000\.arrow has format 2 .* reads format 1 .*; read it with the one that wrote it"
    )
    with pytest.raises(ValueError, match=wanted):
        list(store.read(tmp_path))
    messages = []
    assert not list(store.read(tmp_path, log=messages.append)) and str(path) in messages[0]


def test_arrow_files_of_other_programs_are_refused(tmp_path):
    table = pa.table({"row": [1]})
    for metadata, told in (
        (None, r"format None \(1 columns"),
        ({"version": "1"}, r"1 \(1 columns"),
    ):
        with pa.ipc.new_file(
            tmp_path / "step-00000000.host-000.arrow", table.schema.with_metadata(metadata)
        ) as writer:
            writer.write_table(table)
        with pytest.raises(ValueError, match=told):
            store.read_step(tmp_path, 0)


def test_a_step_is_read_only_under_its_mark(tmp_path):
    store.write(tmp_path, [dialogue(row=0)], step=3, host=0, mark="abc")
    assert places(store.read_step(tmp_path, 3)) == [(3, 0)]
    assert places(store.read_step(tmp_path, 3, "abc")) == [(3, 0)]
    assert store.read_step(tmp_path, 3, "abd") is None and store.read_step(tmp_path, 3, "") is None
    assert store.read_step(tmp_path, 2, "abc") is None
    store.write(tmp_path, [dialogue(row=1)], step=3, host=1, mark="abd")
    assert store.read_step(tmp_path, 3, "abc") is None
    assert places(store.read_step(tmp_path, 3)) == [(3, 0), (3, 1)]


def test_a_step_that_is_dropped_while_it_is_read_is_not_there(tmp_path):
    for step in (0, 1, 2):
        store.write(tmp_path, [dialogue(step)], step=step)
    reading = store.read(tmp_path)
    assert next(reading).step == 0
    store.drop_from(tmp_path, 1)
    assert list(reading) == []


def test_drop_from_leaves_the_steps_before(tmp_path):
    for step in range(8, 12):
        for host in (0, 1):
            store.write(tmp_path, [dialogue(step)], step=step, host=host)
    for name in ("step-00000009.host-000", "step-00000011.host-002"):
        (tmp_path / f"{name}.partial").write_bytes(b"half")
    store.drop_from(tmp_path, 10)
    assert store.steps(tmp_path) == [8, 9]
    left = [f"step-0000000{step}.host-00{host}.arrow" for step in (8, 9) for host in (0, 1)]
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == sorted([*left, "step-00000009.host-000.partial"])


def test_an_interrupted_drop_leaves_no_gap(tmp_path, monkeypatch):
    for step in range(4):
        store.write(tmp_path, [dialogue(step)], step=step)
    real, gone = os.unlink, []

    def unlink(path, **_):
        if gone:
            raise KeyboardInterrupt
        gone.append(path)
        real(path)

    monkeypatch.setattr("pathlib.os.unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        store.drop_from(tmp_path, 1)
    assert store.steps(tmp_path) == [0, 1, 2]


def test_filters_tell_dialogues_by_their_first_and_last_answer():
    dialogues = {
        "wrong, right": answered(0, 1),
        "part, right": answered(0.5, 1),
        "right, right": answered(1, 1),
        "right, wrong": answered(1, 0),
        "wrong, part": answered(0, 0.99),
        "right": answered(1),
        "wrong": answered(0),
        "right, none": answered(1, 0, present=[True, False]),
        "wrong, wrong, right": answered(0, 0, 1),
        "right, wrong, right": answered(1, 0, 1),
        "none, wrong, right": answered(1, 0, 1, present=[False, True, True]),
    }
    corrected = ["wrong, right", "part, right", "wrong, wrong, right", "none, wrong, right"]
    twice = ["right, right", "right, wrong, right"]
    wanted = {
        "all": list(dialogues),
        "wrong_then_right": corrected,
        "right_then_right": twice,
        "ends_right": [*corrected, *twice, "right", "right, none"],
    }
    assert set(store.FILTERS) == set(wanted)
    for name, names in wanted.items():
        kept = list(store.keep(dialogues.values(), name))
        assert kept == [one for key, one in dialogues.items() if key in names], name


def test_an_unknown_filter_is_refused_at_once():
    choices = "examples.keep is 'right'; set one of all, wrong_then_right, right_then_right"
    with pytest.raises(ValueError, match=choices):
        store.keep([], "right")


def batch():
    """Three rows of 12 tokens and 2 turns: both turns, none (it pads the batch), the first."""
    row = GIVEN_THEN_DRAWN
    tokens = {
        name: np.stack(
            [np.pad(values, (0, 2)), np.zeros(12, values.dtype), np.zeros(12, values.dtype)]
        )
        for name, values in row.items()
        if name in store.OF_TOKENS
    }
    tokens["tokens"][2, :4] = 7, 9, 9, 1
    tokens["turn"][2, :4] = 0, 1, 1, 1
    tokens["sampled"][2, 1:4] = True
    tokens["logprobs"][2, 1:4] = -1.5
    ids = np.arange(15, dtype=np.int32).reshape(5, 3)
    return SimpleNamespace(
        **tokens,
        length=np.array([10, 0, 4], np.int32),
        present=np.array([[True, True], [False, False], [True, False]]),
        truncated=np.array([[False, True], [False, False], [False, False]]),
        rewards=np.array([[0, 1], [0, 0], [0.25, 0]], np.float32),
        ids=SimpleNamespace(
            problem=ids[0], draw=ids[1], sample=ids[2], attempt=ids[3], policy_step=ids[4]
        ),
    )


def dialogues_of(episodes):
    return store.from_rows(
        episodes,
        stage="stage2",
        step=6,
        rows=np.array([8, 9, 10]),
        problems=[Problem(id=name, prompt="?", answer=name.upper()) for name in "abc"],
        tasks=["math", "math", "code"],
        prompts=["A?", "", "C?"],
        attempts=[["5", "4"], ["", ""], ["6", ""]],
        grades=[[WRONG, RIGHT], [None, None], [FAILED, None]],
    )


def test_rows_become_dialogues_and_padding_none():
    episodes = batch()
    first, second = dialogues_of(episodes)
    wanted = {"problem_index": 0, "draw": 3, "sample": 6, "attempt": 9, "policy_step": 12}
    wanted |= {"stage": "stage2", "step": 6, "row": 8, "problem": "a", "task": "math"}
    wanted |= {"prompt": "A?", "answer": "A", "attempts": ("5", "4"), "extracted": ("5", "4")}
    wanted |= {"verdicts": ("wrong", "correct"), "details": ("", "")}
    assert_same(first, store.StoredDialogue(**wanted, **GIVEN_THEN_DRAWN))
    assert (second.row, second.problem_index, second.policy_step) == (10, 2, 14)
    assert second.tokens.tolist() == [7, 9, 9, 1] and second.present.tolist() == [True, False]
    assert second.verdicts == ("unparsable", None) and second.extracted == (None, None)
    assert second.details == ("no final answer", None)
    episodes.tokens[:] = 0  # what is reused for the next batch
    assert first.tokens[0] == 7


def test_padding_undoes_what_from_rows_did(tmp_path):
    episodes = batch()
    store.write(tmp_path, dialogues_of(episodes), step=6)
    found = store.padded(list(store.read(tmp_path)), length=12, turns=2)
    ids = found.pop("ids")
    assert set(ids) == set(vars(episodes.ids))
    assert set(found) | {"ids"} == set(vars(episodes))
    for given, back in ((vars(episodes), found), (vars(episodes.ids), ids)):
        for name, values in back.items():
            np.testing.assert_array_equal(values, given[name][[0, 2]], err_msg=name, strict=True)


def test_padding_makes_room_for_more_tokens_and_turns():
    found = store.padded([dialogue()], length=11, turns=3)
    assert found["tokens"].tolist() == [[7, 7, 8, 9, 1, 3, 3, 5, 6, 1, 0]]
    assert found["present"].tolist() == [[True, True, False]] and found["length"].tolist() == [10]
    assert store.padded([], length=4, turns=2)["logprobs"].shape == (0, 4)


@pytest.mark.parametrize(("length", "turns"), [(9, 2), (10, 1)])
def test_a_dialogue_that_does_not_fit_names_the_limit(length, turns):
    told = rf"problem 'p-1' .*10 tokens in 2 turns; the limit is {length} tokens in {turns} turns"
    with pytest.raises(ValueError, match=told):
        store.padded([dialogue()], length, turns)
    store.padded([dialogue()], 10, 2)


def test_a_transcript_has_the_turns_that_are_there():
    both, first = (store.transcript(one) for one in dialogues_of(batch()))
    assert (both.step, both.problem, both.task, both.prompt, both.answer) == (
        6,
        "a",
        "math",
        "A?",
        "A",
    )
    assert both.attempts == ("5", "4") and both.verdicts == ("wrong", "correct")
    assert both.rewards == (0.0, 1.0) and both.lengths == (3, 3)
    assert both.truncated == (False, True) and both.extracted == ("5", "4")
    assert first.attempts == ("6",) and first.verdicts == ("unparsable",)
    assert first.rewards == (0.25,) and first.lengths == (3,) and first.extracted == (None,)
    assert type(both.rewards[0]) is float and type(both.truncated[0]) is bool
    empty = {name: GIVEN_THEN_DRAWN[name][:0] for name in store.OF_TOKENS}
    assert store.transcript(dialogue(**empty)).lengths == (0, 0)


def test_importing_the_store_loads_no_jax():
    code = "import sys, score_jax.data.store; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
