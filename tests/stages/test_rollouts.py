"""Rollouts that are kept: which rows, what of them, and what a resumed run makes of them."""

import functools
import json
import shutil
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from score_jax.data import store
from score_jax.distributed import processes
from score_jax.records import Grade
from score_jax.stages import rollouts
from score_jax.stages.checkpoint import StorageError
from score_jax.stages.handoff import load_parent_policy, open_checkpoints
from tests.rl.test_rollout import CUTS, ENCODER, PROBLEMS, graded
from tests.short_answers import TASK
from tests.stage_configs import stages
from tests.stage_trial import Judge, draw, open_trial, train
from tests.tiny import naive_logprobs
from tests.tiny_stages import assert_same_tree, lines, without_times

pytestmark = pytest.mark.usefixtures("compiled")
STEPS, ROWS = 6, 8  # of the trial: four problems with two dialogues each
OPTIONS = {
    "all": {},
    "some": {"rollouts": 3},
    "none": {"rollouts": 0},
    "every second step": {"rollouts_every": 2},
}


def files(folder):
    """Contents of the files of the rollouts of a stage, by name."""
    return {path.name: path.read_bytes() for path in (folder / rollouts.NAME).glob("*")}


def test_a_dialogue_holds_what_happened_in_its_row():
    rows, found = jax.tree.map(np.asarray, CUTS), graded(CUTS)[0]
    made = rollouts.dialogues(ENCODER, PROBLEMS, rows, found, "stage1", 6, range(10, 14))
    assert [one.row for one in made] == [10, 11, 12, 13]
    first, last = (store.transcript(made[row]) for row in (1, 3))
    assert (first.step, first.problem, first.prompt, first.answer) == (6, "a", "93", "1")
    assert first.task == "digits"
    assert first.attempts == ("555", "1") and first.verdicts == ("wrong", "correct")
    assert first.rewards == (0.0, 1.0) and first.extracted == ("5", "1")
    assert first.lengths == (3, 2) and first.truncated == (True, False)
    assert last.problem == "b" and last.lengths == (2, 3) and last.truncated == (False, True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A function (name of OPTIONS) -> folder and end of the run, trained once for each."""

    @functools.cache
    def run(name):
        folder = tmp_path_factory.mktemp("whole") / "stage1"
        params, drawn = train(folder, **OPTIONS[name])
        assert drawn == STEPS
        return folder, params

    return run


def assert_same_end(folder, params, whole):
    """Bitwise the same parameters and rollouts; the same metrics but for times."""
    other, other_params = whole
    assert_same_tree(params, other_params)
    rows = [without_times(lines(place / "metrics.jsonl")) for place in (folder, other)]
    assert rows[0] == rows[1] and len(rows[0]) == STEPS
    assert files(folder) == files(other)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_learns_from_what_was_drawn_and_ends_as_an_uninterrupted_one(
    options, stop, uninterrupted, tmp_path, capsys
):
    params, drawn = train(tmp_path, stop=stop, **OPTIONS[options])
    assert params is None and drawn == stop + 1
    interrupted = store.read_step(tmp_path / rollouts.NAME, stop)
    assert [dialogue.row for dialogue in interrupted] == list(range(ROWS))
    params, drawn = train(tmp_path, **OPTIONS[options])
    assert drawn == STEPS - stop - 1
    assert f"[stage1] uses the saved rollout of step {stop + 1}" in capsys.readouterr().err
    assert_same_end(tmp_path, params, uninterrupted(options))


def test_a_run_may_be_interrupted_in_every_step(uninterrupted, tmp_path):
    for _ in range(STEPS):
        params, drawn = train(tmp_path, stop=0)
        assert params is None and drawn == 1
    params, drawn = train(tmp_path)
    assert drawn == 0
    assert_same_end(tmp_path, params, uninterrupted("all"))


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_run_with_redraws_is_resumed_where_its_stream_stood(stop, tmp_path):
    """Also where it is stopped within a step, whose rollout is then drawn again."""
    params, drawn = train(tmp_path / "whole", redraws=2)
    assert drawn > STEPS  # some step was short of groups with a signal
    first, _ = train(tmp_path / "cut", redraws=2, stop=stop)
    assert first is None
    again, _ = train(tmp_path / "cut", redraws=2)
    assert_same_end(tmp_path / "cut", again, (tmp_path / "whole", params))
    rows = lines(tmp_path / "cut" / "metrics.jsonl")
    assert sum(row["redraws"] for row in rows) == drawn - STEPS
    assert sum(row["dialogues/drawn"] for row in rows) == drawn * ROWS
    draws = [one.draw for one in store.read(tmp_path / "cut" / rollouts.NAME)]
    assert draws == sorted(draws) and max(draws) < 4 * drawn
    with open_checkpoints(open_trial().programs.settings, tmp_path / "cut") as checkpoints:
        assert checkpoints.extra(STEPS)["batches"] == drawn


def test_the_next_stage_draws_behind_all_that_was_drawn(tmp_path):
    _, drawn = train(tmp_path / "stage1", redraws=2)
    load_parent_policy(stages()[-1], tmp_path / "stage2", tmp_path)
    handed_on = json.loads((tmp_path / "stage2/handoff.json").read_text())
    assert handed_on["draws"] == 4 * drawn > 4 * STEPS


def test_what_was_kept_carries_the_mark_of_the_policy_that_drew_it(uninterrupted, tmp_path):
    """And what an uninterrupted run keeps carries none: no later run may take it for its own."""
    folder, end = uninterrupted("all")
    assert store.read_step(folder / rollouts.NAME, 2, "")
    seen = []
    train(tmp_path, stop=2, watch=lambda params, _: seen.append(params))
    marks = [rollouts.checksum(params) for params in (*seen, end)]
    assert len(set(marks)) == 3  # before the first update, before the second, at the end
    kept = tmp_path / rollouts.NAME
    assert [store.read_step(kept, 2, mark) for mark in (*marks, "")] == [None] * 4
    train(tmp_path, watch=lambda params, _: seen.append(params))
    train(folder.parent / "again", stop=2)
    mark = rollouts.checksum(seen[2])  # of the policy of the third step
    assert len(store.read_step(folder.parent / "again" / rollouts.NAME, 2, mark)) == ROWS


def rewrite(folder, step, dialogues, mark, **options):
    for path in folder.glob(f"step-{step:08d}.*"):
        path.unlink()
    return store.write(folder, dialogues, step=step, mark=mark, **options)


def cut(size):
    def spoil(folder, step, dialogues, mark):
        (path,) = folder.glob(f"step-{step:08d}.*")
        path.write_bytes(path.read_bytes()[:size])

    return spoil


def another_step(folder, step, dialogues, mark):
    """The whole rollout of this policy, as that of the next step."""
    (path,) = folder.glob(f"step-{step:08d}.*")
    path.unlink()
    later = [replace(dialogue, step=step + 1) for dialogue in dialogues]
    store.write(folder, later, step=step + 1, mark=mark)


def a_host_missing(folder, step, dialogues, mark):
    rewrite(folder, step, dialogues[:4], mark, host=1)


def hosts_that_disagree(folder, step, dialogues, mark):
    """Half of the rollout was drawn by another policy."""
    rewrite(folder, step, dialogues[:4], mark)
    store.write(folder, dialogues[4:], step=step, host=1, mark="12345")


SPOILT = {
    "another policy": lambda folder, step, dialogues, mark: rewrite(folder, step, dialogues, "9"),
    "another step": another_step,
    "an empty file": cut(0),
    "the head of a file": cut(100),
    "a file without its end": cut(-10),
    "a host's part missing": a_host_missing,
    "hosts that disagree": hosts_that_disagree,
    "a part kept only": lambda folder, step, dialogues, mark: rewrite(
        folder, step, dialogues[::3], mark
    ),
    "as config.log keeps it": lambda folder, step, dialogues, mark: rewrite(
        folder, step, dialogues, ""
    ),
    "none": lambda folder, step, dialogues, mark: store.drop_from(folder, step),
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was interrupted in its third step, with the mark of that step's policy."""
    folder = tmp_path_factory.mktemp("interrupted") / "stage1"
    train(folder, stop=2)
    (path,) = (folder / rollouts.NAME).glob("step-00000002.*")
    return folder, store.pa.ipc.open_file(path).schema.metadata[b"mark"].decode()


@pytest.fixture
def copy(interrupted, tmp_path):
    return Path(shutil.copytree(interrupted[0], tmp_path / "stage1"))


@pytest.mark.parametrize("spoil", SPOILT)
def test_what_is_not_this_policys_whole_rollout_is_drawn_again(
    spoil, interrupted, uninterrupted, copy, capsys
):
    """With the same keys, so that it holds the same tokens."""
    folder = copy / rollouts.NAME
    SPOILT[spoil](folder, 2, store.read_step(folder, 2), interrupted[1])
    params, drawn = train(copy)
    assert drawn == STEPS - 2
    assert "uses the saved rollout" not in capsys.readouterr().err
    assert_same_end(copy, params, uninterrupted("all"))


def test_later_steps_of_a_killed_run_are_dropped_and_drawn_again(uninterrupted, tmp_path):
    """Killed in its sixth step, with a checkpoint of the fourth."""

    def die(number):
        if number == 5:
            raise SystemError

    with pytest.raises(SystemError):
        train(tmp_path, judge=Judge(die))
    assert store.steps(tmp_path / rollouts.NAME) == [0, 1, 2, 3, 4]
    path = next((tmp_path / rollouts.NAME).glob("step-00000004.*"))
    path.write_bytes(b"")
    params, drawn = train(tmp_path)
    assert drawn == 2
    assert_same_end(tmp_path, params, uninterrupted("all"))


def host(trial, number, hosts, log=None):
    """One of several hosts: its rows of every batch, and arrays of its own instead of devices."""
    own = np.split(np.arange(ROWS), hosts)[number]
    settings = trial.programs.settings
    return SimpleNamespace(
        settings=replace(settings, log=log or settings.log),
        own_rows=lambda rows: jax.tree.map(lambda x: x[own], rows),
        to_global=lambda rows: rows,
    )


def resume(folder, trial, programs, step, params):
    """What a host resumes with: it reads its own part of the stream, and scores anew."""
    stream = trial.stream(trial.programs)
    stream.rows = sorted({row // 2 for row in programs.own_rows(np.arange(ROWS)).tolist()})
    stream.position = step
    devices = replace(trial.devices, score=lambda *given: given)
    return rollouts.resume(folder, programs, devices, stream, step, params, trial.reference)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_a_rollout_of_two_hosts_serves_any_number_of_hosts(hosts, interrupted, copy):
    folder, mark = copy / rollouts.NAME, interrupted[1]
    known = store.read_step(folder, 2)
    rewrite(folder, 2, known[4:], mark, host=1)
    store.write(folder, known[:4], step=2, mark=mark)
    trial, before = open_trial(), files(copy)
    with open_checkpoints(trial.programs.settings, copy) as checkpoints:
        params = checkpoints.restore_params(2, trial.programs.abstract_state())
    rows = []
    for number in range(hosts):
        found = resume(copy, trial, host(trial, number, hosts), 2, params)
        assert store.steps(folder) == [0, 1]  # what is kept of it, its caller writes
        for name, data in before.items():
            (folder / name).write_bytes(data)
        texts = zip(found.problems, found.graded.attempts, strict=True)
        rows += [(problem.id, attempts) for problem, attempts in texts]
    assert rows == [(dialogue.problem, dialogue.attempts) for dialogue in known]


def mixed_grades(problem, text):
    """Partial credit, no final answer, and text beyond ASCII, by the attempt's characters."""
    kind = sum(map(ord, text)) % 3
    if kind == 0:
        return Grade(verdict="unparsable", reward=0.25, detail="π: none \ud800\n")
    if kind == 1:
        return Grade(verdict="wrong", reward=0.1, extracted="é")
    return Grade(verdict="correct", reward=1.0, extracted="", detail="")


def test_everything_comes_back_and_is_scored_anew(tmp_path):
    trial = open_trial()
    drawn = draw(trial, 3, judge=Judge(grade=mixed_grades))
    assert len({grade.verdict for row in drawn.graded.grades for grade in row}) == 3
    cut = drawn.local.truncated ^ (np.arange(2 * ROWS).reshape(ROWS, 2) % 3 == 0)
    drawn = replace(drawn, local=replace(drawn.local, truncated=cut))
    one, encoder = host(trial, 0, 1), trial.devices.encoder
    params = trial.reference
    mark = rollouts.checksum(params)
    rollouts.write(tmp_path, one, encoder, drawn, 3, mark=mark)
    found = resume(tmp_path, trial, one, 3, params)
    for name, same in (("attempts", True), ("problems", False)):
        owners = (found.graded, drawn.graded) if same else (found, drawn)
        assert getattr(owners[0], name) == getattr(owners[1], name)
    for ours, theirs in zip(found.graded.grades, drawn.graded.grades, strict=True):
        for grade, known in zip(ours, theirs, strict=True):
            told = known.detail.encode("utf-8", "backslashreplace").decode()
            reward = float(np.float32(known.reward))
            assert grade == replace(known, detail=told, reward=reward)
    length = np.arange(drawn.local.tokens.shape[1]) < drawn.local.length[:, None]
    for given, back in ((drawn.local, found.local), (drawn.local.ids, found.local.ids)):
        for field in fields(given):
            want, value = getattr(given, field.name), getattr(back, field.name)
            if isinstance(want, np.ndarray):
                want = want * length if want.shape == length.shape else want
                np.testing.assert_array_equal(value, want, err_msg=field.name, strict=True)
    assert found.scores == (trial.reference, found.episodes)
    assert found.graded.seconds["grade"] == 0.0


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize(
    ("count", "rows"),
    [
        (-1, range(8)),
        (0, ()),
        (1, (0,)),
        (3, (0, 2, 5)),  # thirds of eight rows begin at 0, 2 2/3 and 5 1/3
        (5, (0, 1, 3, 4, 6)),
        (8, range(8)),
        (100, range(8)),
    ],
)
def test_the_rows_that_are_kept_lie_evenly_over_those_of_all_hosts(
    count, rows, hosts, tmp_path, monkeypatch
):
    trial, whole = open_trial(), drawn_once()
    for number in range(hosts):
        one = host(trial, number, hosts)
        own = one.own_rows(np.arange(ROWS))
        part = replace(
            whole,
            local=one.own_rows(whole.local),
            problems=[whole.problems[row] for row in own],
            graded=replace(
                whole.graded,
                attempts=[whole.graded.attempts[row] for row in own],
                grades=[whole.graded.grades[row] for row in own],
            ),
        )
        monkeypatch.setattr(processes, "process_index", lambda number=number: number)
        rollouts.write(tmp_path, one, trial.devices.encoder, part, 1, count=count)
    found = list(store.read(tmp_path / rollouts.NAME))
    assert [dialogue.row for dialogue in found] == list(rows)
    for dialogue in found:
        row = whole.local.tokens[dialogue.row][: whole.local.length[dialogue.row]]
        np.testing.assert_array_equal(dialogue.tokens, row)
        assert dialogue.problem == whole.problems[dialogue.row].id
        assert dialogue.attempts == whole.graded.attempts[dialogue.row]
    kept = len(list(tmp_path.rglob("*.arrow")))
    assert kept == len({row * hosts // ROWS for row in rows})  # no host writes an empty file


@functools.cache
def drawn_once():
    return draw(open_trial(), 1)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ("all", dict.fromkeys(range(6), ROWS)),
        ("some", dict.fromkeys(range(6), 3)),
        ("none", {}),
        ("every second step", {0: ROWS, 2: ROWS, 4: ROWS}),
    ],
)
def test_the_config_says_which_steps_and_how_many_rows_are_kept(options, kept, uninterrupted):
    folder, _ = uninterrupted(options)
    dialogues = list(store.read(folder / rollouts.NAME))
    assert Counter(dialogue.step for dialogue in dialogues) == kept
    assert all(dialogue.policy_step == dialogue.step for dialogue in dialogues)
    assert {dialogue.stage for dialogue in dialogues} <= {"stage1"}


def test_their_size_is_told_at_the_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(store, "size_bytes", lambda folder: 12_345_678)
    train(tmp_path)
    told = f"[stage1] rollouts kept: 12.3 MB in {tmp_path / rollouts.NAME}"
    assert told in capsys.readouterr().err
    monkeypatch.undo()
    train(tmp_path / "none", rollouts=0)
    assert "rollouts kept" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run's dialogues by step, and what each of its updates was given."""
    folder, seen = tmp_path_factory.mktemp("watched"), []

    def watch(params, episodes):
        seen.append((params, jax.tree.map(np.array, episodes)))

    train(folder, watch=watch)
    return [store.read_step(folder / rollouts.NAME, step) for step in range(STEPS)], seen


def test_the_store_holds_what_training_learnt_from(watched):
    steps, seen = watched
    for dialogues, (_, episodes) in zip(steps, seen, strict=True):
        assert [dialogue.row for dialogue in dialogues] == list(range(len(episodes.tokens)))
        for row, dialogue in enumerate(dialogues):
            size = episodes.length[row]
            for name in ("tokens", "turn", "sampled", "trained", "logprobs"):
                found = getattr(dialogue, name)
                assert found.tobytes() == getattr(episodes, name)[row, :size].tobytes(), name
            for name in ("present", "truncated", "rewards"):
                np.testing.assert_array_equal(getattr(dialogue, name), getattr(episodes, name)[row])
            ids = {name: getattr(episodes.ids, name)[row] for name in ("draw", "sample", "attempt")}
            assert {name: getattr(dialogue, name) for name in ids} == ids


def test_kept_texts_and_verdicts_follow_from_the_kept_tokens(watched):
    steps, _ = watched
    trial = open_trial()
    chat = trial.devices.encoder.chat
    for dialogue in (dialogue for step in steps for dialogue in step):
        problem = trial.problems[dialogue.problem_index]
        assert (dialogue.problem, dialogue.answer) == (problem.id, problem.answer)
        assert (dialogue.task, dialogue.prompt) == (TASK.name, problem.prompt)
        begin = chat.encode_prompt(problem.prompt)
        assert dialogue.tokens[: len(begin)].tolist() == list(begin)
        for turn, attempt in enumerate(dialogue.attempts, 1):
            ids = dialogue.tokens[dialogue.turn == turn].tolist()
            stop = ids[-1] in chat.stops
            assert stop != dialogue.truncated[turn - 1]
            assert attempt == chat.decode(ids[: len(ids) - stop])
            grade = TASK.grade(problem, attempt)
            assert dialogue.verdicts[turn - 1] == grade.verdict
            assert dialogue.rewards[turn - 1] == grade.reward
            assert dialogue.extracted[turn - 1] is None
    whole = [dialogue for step in steps for dialogue in step]
    assert len({dialogue.rewards.tobytes() for dialogue in whole}) == 4  # all that there are
    assert any(dialogue.truncated.any() for dialogue in whole)
    assert not all(dialogue.truncated.all() for dialogue in whole)


def test_kept_logprobs_are_those_of_the_policy_that_drew_the_row(watched):
    steps, seen = watched
    config = open_trial().programs.decoder.config
    for step in (0, 3, 5):
        for dialogue in steps[step][::3]:
            padded = np.pad(dialogue.tokens, (0, 40 - len(dialogue.tokens)))
            fresh = naive_logprobs(config, seen[step][0], padded[None])[0, : len(dialogue.tokens)]
            expected = np.where(dialogue.sampled, fresh, 0.0)
            np.testing.assert_allclose(dialogue.logprobs, expected, atol=2e-5)
            assert (dialogue.sampled == (dialogue.turn > 0)).all() and dialogue.sampled.any()


def test_loss_is_put_on_the_turns_that_are_asked_for():
    turn = np.array([[0, 0, 1, 1, 0, 2, 2, 0, 3], [0, 1, 2, 2, 2, 0, 0, 0, 0]])
    rows = SimpleRows(turn=turn, trained=turn == 1)
    for trained, expected in (
        ((False, True, False), [[5, 6], [2, 3, 4]]),
        ((True, False, True), [[2, 3, 8], [1]]),
        ((False, False, False), [[], []]),
    ):
        found = rollouts.learn_turns(rows, trained).trained
        assert [np.flatnonzero(row).tolist() for row in found] == expected


@dataclass
class SimpleRows:
    """The fields of Episodes that say what is learnt."""

    turn: np.ndarray
    trained: np.ndarray


def test_a_disk_that_takes_no_more_stops_the_run_with_a_remedy(tmp_path):
    (tmp_path / rollouts.NAME).write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=r"rollouts could not be written \(.*\); make room"):
        train(tmp_path)
