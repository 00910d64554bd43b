"""Several processes on one machine, with fake devices, against one process."""

import json
import os
import re

import jax
import numpy as np
import pytest

from score_jax.data import store
from score_jax.distributed import processes
from score_jax.stages.build import build
from score_jax.stages.handoff import open_checkpoints
from score_jax.stages.resolve import resolve_stages
from tests import tiny_stages
from tests.tiny_stages import (
    ROOT,
    command,
    free_port,
    kept_dialogues,
    launch,
    lines,
    without_times,
)

STEPS = 4
FLAGS = (f"--config.steps={STEPS}", "--config.evaluation.samples=0")
SLOW = 900  # seconds after which a process hangs for certain


def run_hosts(workdir, cache, *, count=2, devices=2, blows=None, flags=()):
    """Runs the tiny Stage I on several processes; returns each one's exit code and stderr.

    Args:
      blows: by number of process, "WHAT MOMENT STEP" as hosts_trial.py takes it.
    """
    port = free_port()
    told = os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0")
    xla = f"{told} --xla_force_host_platform_device_count={devices}"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"XLA_FLAGS": xla, "PYTHONPATH": os.pathsep.join(paths)}
    started = []
    for number in range(count):
        program = ["tests/hosts_trial.py", *(blows or {}).get(number, "NONE - 0").split()]
        where = [f"--coordinator=127.0.0.1:{port}", f"--processes={count}"]
        where.append(f"--process={number}")
        arguments = [*program, *command(workdir)[2:], *FLAGS, *flags]
        arguments += where if count > 1 else []
        started.append(launch(arguments, cache, variables=variables))
    try:
        told = [process.communicate(timeout=SLOW) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, err) for p, (_, err) in zip(started, told, strict=True)]


def codes(told):
    return [code for code, _ in told]


def hosts_of(folder, step):
    """How many hosts have written rows of a step."""
    return len(list(folder.glob(f"step-{step:08d}.host-*.arrow")))


def saved(workdir, step, overrides):
    """The state of a checkpoint, read by this one process."""
    config = tiny_stages.get_config()
    config.update_from_flattened_dict({"steps": STEPS, "evaluation.samples": 0} | overrides)
    stage = resolve_stages(config, {})[-1]
    like = build(stage.settings, jax.devices()[:1]).abstract_state()
    with open_checkpoints(stage.settings, workdir / "stage1") as checkpoints:
        return checkpoints.restore(step, like)


def assert_same_result(workdir, other, **overrides):
    """The same samples and verdicts; numbers that only differ by the order of sums.

    A sum over rows is over four devices in both, but gloo adds in another order than one
    process does: float32 rounding, 1e-7 of each number, carried through four updates.
    """
    rows = [without_times(lines(folder / "stage1/metrics.jsonl")) for folder in (workdir, other)]
    assert [row["step"] for row in rows[0]] == list(range(1, STEPS + 1))
    for ours, theirs in zip(*rows, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
    drawn = [kept_dialogues(folder / "stage1", "logprobs") for folder in (workdir, other)]
    assert drawn[0] == drawn[1] and drawn[0]
    logprobs = [
        np.concatenate([dialogue.logprobs for dialogue in store.read(folder / "stage1/rollouts")])
        for folder in (workdir, other)
    ]
    np.testing.assert_allclose(*logprobs, atol=1e-3)  # of parameters that differ by less
    ours, theirs = (
        json.loads((folder / "stage1/evaluation.json").read_text()) for folder in (workdir, other)
    )
    assert ours == theirs
    (state, extra), (other_state, other_extra) = (
        saved(folder, STEPS, overrides) for folder in (workdir, other)
    )
    extra.pop("fingerprint"), other_extra.pop("fingerprint")
    assert extra == other_extra
    for a, b in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(other_state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-4)  # of a learning rate of 1e-2


@pytest.fixture(scope="module")
def alone(cache, tmp_path_factory):
    """The run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone")
    told = run_hosts(workdir, cache, count=1, devices=4)
    assert codes(told) == [0], told
    return workdir


@pytest.fixture(scope="module")
def killed(cache, tmp_path_factory):
    """Two processes of which one is killed after a checkpoint; then the same command again."""
    workdir = tmp_path_factory.mktemp("killed")
    first = run_hosts(workdir, cache, blows={1: "KILL update 3"})
    return workdir, first, run_hosts(workdir, cache)


def test_a_killed_process_ends_the_others_with_its_name_and_phase(killed):
    _, ((code, err), (other, _)), _ = killed
    assert code not in (0, None) and other == -9
    assert re.search(
        r"\[host 0\] error: host 1 of 2 has ended without a message, last seen in phase update of "
        r"step 3: the same command on all hosts goes on from the last checkpoint",
        err,
    )


def test_two_processes_resumed_end_as_one_process(killed, alone, compiled):
    workdir, _, told = killed
    assert codes(told) == [0, 0], told
    assert "goes on from the checkpoint of step 2 of 4" in told[0][1]
    assert_same_result(workdir, alone)


def test_only_the_first_host_speaks(killed):
    _, _, (_, (_, err)) = killed
    assert "stage1" not in err and "error" not in err


@pytest.mark.slow
def test_four_processes_of_two_devices_end_as_one_process(cache, tmp_path):
    flags = ["--config.batch=8"]  # a problem for each device
    for name, count in (("one", 1), ("four", 4)):
        devices = 8 // count
        told = run_hosts(tmp_path / name, cache, count=count, devices=devices, flags=flags)
        assert codes(told) == [0] * count, told
    assert_same_result(tmp_path / "four", tmp_path / "one")


@pytest.mark.slow
def test_sigterm_to_one_saves_on_all_and_other_numbers_of_hosts_go_on(
    cache, alone, compiled, tmp_path
):
    """Between rollout and update, from 2 processes to 4 and back to 2."""
    first = run_hosts(tmp_path, cache, blows={1: "TERM rollout 2"})
    assert codes(first) == [143, 143], first
    for _, err in first:
        assert "stopped: SIGTERM at step 1 of 4: saved; the same command goes on" in err
    kept = tmp_path / "stage1/rollouts"
    assert [hosts_of(kept, step) for step in range(4)] == [2, 2, 0, 0]
    second = run_hosts(tmp_path, cache, count=4, devices=1, blows={0: "TERM rollout 4"})
    assert codes(second) == [143] * 4, second
    assert "goes on from the checkpoint of step 1 of 4" in second[0][1]
    assert "uses the saved rollout of step 2" in second[0][1]
    assert [hosts_of(kept, step) for step in range(4)] == [2, 4, 4, 4]
    third = run_hosts(tmp_path, cache)
    assert codes(third) == [0, 0], third
    assert "uses the saved rollout of step 4" in third[0][1]
    assert [hosts_of(kept, step) for step in range(4)] == [2, 4, 4, 2]
    assert_same_result(tmp_path, alone)


@pytest.mark.slow
def test_a_slow_host_is_named_and_the_job_goes_on(cache, alone, compiled, tmp_path):
    told = run_hosts(tmp_path, cache, blows={1: "SLEEP:35 rollout 3"})  # gloo's own limit is 30
    assert codes(told) == [0, 0], told
    late = re.findall(r"host 1 of 2 is late: for (\d+) s .* in phase grade of step 3", told[0][1])
    assert len(late) >= 2 and int(late[0]) >= 10
    assert "host 1 of 2 has caught up" in told[0][1]
    assert_same_result(tmp_path, alone)


@pytest.mark.slow
def test_a_hung_grader_costs_its_own_answers_only(cache, tmp_path):
    told = run_hosts(
        tmp_path, cache, blows={1: "HANG rollout 3"}, flags=["--config.grading.cache_size=0"]
    )
    assert codes(told) == [0, 0], told
    late = [row["verdict/timeout"] for row in lines(tmp_path / "stage1/metrics.jsonl")]
    assert late[2] > 0 and late[:2] + late[3:] == [0, 0, 0]


@pytest.mark.slow
def test_hosts_that_share_rows_learn_from_the_same_rewards(cache, tmp_path):
    """Each holds half of the model and all rows; one's graders hang."""
    flags = ["mesh.tensor=2", "model.kv_heads=2", "grading.cache_size=0"]
    flags = [f"--config.{flag}" for flag in flags]
    one, two = tmp_path / "one", tmp_path / "two"
    told = run_hosts(one, cache, count=1, devices=2, flags=flags)
    told += run_hosts(two, cache, devices=1, flags=flags, blows={1: "HANG rollout 3"})
    assert codes(told) == [0, 0, 0], told
    assert_same_result(two, one, **{"model.kv_heads": 2})


@pytest.mark.slow
def test_a_full_disk_on_one_host_stops_all_with_the_reason(cache, alone, compiled, tmp_path):
    told = run_hosts(tmp_path, cache, blows={1: "FULL update 4"})
    assert codes(told) == [1, 1], told
    for (_, err), who in zip(told, ("host 1 of 2 has stopped: ", ""), strict=True):
        assert re.search(
            rf"error: {who}checkpoint in .* could not be written \(.*File too large.*\); the "
            "checkpoint of step 2 is intact: make room and run the same command again",
            err,
        ), err
    again = run_hosts(tmp_path, cache)
    assert codes(again) == [0, 0], again
    assert "goes on from the checkpoint of step 2 of 4" in again[0][1]
    assert_same_result(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--config.mesh.fsdp=3",
            "mesh is slices=1 data=-1 fsdp=3 sampling_tensor=1 tensor=1; the product",
        ),
        ("--config.batch=6", "config.batch is 6; it must divide by the 4 row shards"),
    ],
)
def test_what_does_not_divide_is_told_in_one_line_by_each(flag, message, cache, tmp_path):
    told = run_hosts(tmp_path, cache, flags=[flag])
    assert codes(told) == [2, 2]
    for number, (_, err) in enumerate(told):
        said = [text for text in err.splitlines() if "error" in text]
        assert len(said) == 1 and said[0].startswith(f"[host {number}] error: {message}"), err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("here", 2, 0), "--coordinator is 'here'; set it to HOST:PORT"),
        (("", 2, 0), "--coordinator is ''; set it to HOST:PORT"),
        (("here:80", None, 0), "--processes is None and --process is 0; set how many"),
        (("here:80", 2, 2), "--processes is 2 and --process is 2; set how many"),
    ],
)
def test_flags_that_describe_no_hosts_are_refused(flags, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        processes.start(*flags)


def test_one_host_asks_nobody(monkeypatch):
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    processes.start("", None, None)
    assert (processes.process_count(), processes.process_index(), processes.log_prefix()) == (
        1,
        0,
        "",
    )
    assert processes.all_gather_objects({"a": 1}) == [{"a": 1}]
    assert processes.all_gather(np.asarray([1.5, 2.0])).tolist() == [[1.5, 2.0]]
