"""Methods of several stages, run whole: rounds, interruptions, collections, adapters, data sets."""

import json
import os
import shutil
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from score_jax.data import store
from score_jax.distributed.signals import Interrupted
from score_jax.stages import collect, rollouts
from score_jax.stages.build import build
from score_jax.stages.chain import run_mode, waits, with_collected
from score_jax.stages.checkpoint import StorageError
from score_jax.stages.handoff import load_policy, open_checkpoints
from score_jax.stages.resolve import resolve_stages
from score_jax.stages.train import StageRun
from tests.conftest import compile_cache
from tests.guarded import guarded_steps
from tests.methods import TUNE
from tests.tiny_stages import assert_same_tree, get_config, lines, without_times

COLLECT = {"name": "collect", "program": "collect", "steps": 2, "batch": 8}
KEEP = {"examples.keep": "wrong_then_right"}
STAR = ("collect_1", "tune_1", "collect_2", "tune_2")
SETS = {"few": {"problems": 2}, "validation": {"data": {"split": "validation"}}}


def method():
    """STaR in two rounds, made small: adapters learn, and are measured on three sets."""
    config = get_config("stage1")
    config.stages, config.rounds = (COLLECT, TUNE | KEEP), 2
    config.steps = 3
    config.lora.rank = 2
    config.checkpoint.every = 1
    config.estimator.kl = "k2"  # whose scores are log-probabilities
    config.evaluation.update({"problems": 4, "batch": 2, "samples": 0, "sets": ConfigDict(SETS)})
    return resolve_stages(config, {})


def run(workdir, stages, mode="train"):
    with guarded_steps():
        run_mode(mode, stages, workdir, config="", command="")


@pytest.fixture(scope="module")
def star(cache, tmp_path_factory):
    """A run without an interruption."""
    workdir = tmp_path_factory.mktemp("star")
    with compile_cache(cache):
        run(workdir, method())
    return workdir


def dialogues(folder):
    """The kept dialogues of a stage, as comparable values."""
    return [
        {n: v.tobytes() if isinstance(v, np.ndarray) else v for n, v in vars(one).items()}
        for one in store.read(folder / rollouts.NAME)
    ]


def last_state(workdir, stage):
    """The train state at the end of a stage."""
    with open_checkpoints(stage.settings, workdir / stage.settings.name) as checkpoints:
        like = build(stage.settings).abstract_state()
        return checkpoints.restore(checkpoints.steps()[-1], like)[0]


def test_each_round_collects_with_what_the_round_before_has_trained(star):
    assert {path.name for path in star.iterdir() if path.is_dir()} == set(STAR)
    first, second = (dialogues(star / name) for name in ("collect_1", "collect_2"))
    assert len(first) == len(second) == 2 * 8 * 2  # steps, problems, dialogues of each
    assert [one["problem"] for one in first] == [one["problem"] for one in second]
    assert [one["tokens"] for one in first] != [one["tokens"] for one in second]
    assert not (star / "collect_1/handoff.json").exists()
    assert json.loads((star / "collect_2/handoff.json").read_text())["parent"] == "tune_1"
    assert not (star / "tune_2/handoff.json").exists()  # it starts from the base model again


def test_a_supervised_stage_hands_its_last_checkpoint_on(star):
    record = json.loads((star / "collect_2/handoff.json").read_text())
    assert record["step"] == 3 and record["selection"]["by"] == "last"


def test_an_interrupted_round_ends_as_an_uninterrupted_one(star, compiled, tmp_path, monkeypatch):
    """Once while it collects, once while it trains."""
    workdir, stages = tmp_path / "run", method()
    shutil.copytree(star, workdir)
    for name in ("collect_2", "tune_2"):
        shutil.rmtree(workdir / name)
    draw, check, moments = collect.collect_rollout, StageRun.check, ["collecting", "training"]

    def interrupt(moment):
        if moment in moments:
            moments.remove(moment)
            os.kill(os.getpid(), signal.SIGTERM)

    def drawing(*arguments, **options):
        interrupt("collecting")
        return draw(*arguments, **options)

    def checking(stage, step, values):
        if step == 2:
            interrupt("training")
        check(stage, step, values)

    monkeypatch.setattr(collect, "collect_rollout", drawing)
    monkeypatch.setattr(StageRun, "check", checking)
    for kept in (1, 2):
        with pytest.raises(Interrupted, match="the same command goes on from here"):
            run(workdir, stages)
        assert store.steps(workdir / "collect_2/rollouts") == list(range(kept))
    assert not (workdir / "tune_2/evaluation.json").exists()
    run(workdir, stages)
    assert dialogues(workdir / "collect_2") == dialogues(star / "collect_2")
    assert_same_tree(*(last_state(folder, stages[-1]) for folder in (workdir, star)))
    rows = [without_times(lines(folder / "tune_2/metrics.jsonl")) for folder in (workdir, star)]
    assert rows[0] == rows[1] and len(rows[0]) == 3
    files = [(folder / "tune_2/evaluation.json").read_text() for folder in (workdir, star)]
    assert files[0] == files[1]


def test_first_attempts_are_waited_for_until_all_are_collected(star, tmp_path):
    """A part of them is there when a run goes on that was interrupted while it collected."""
    stages, workdir = method(), tmp_path / "run"
    shutil.copytree(star, workdir)
    last = stages[-1]
    data = dict(last.settings.data) | {"first_attempts": "stage:collect_2"}
    settings = replace(last.settings, data=tuple(data.items()))
    given = with_collected(replace(last, settings=settings), workdir)
    assert not waits(given, stages, workdir) and not waits(last, stages, workdir)
    max((workdir / "collect_2/rollouts").iterdir()).unlink()
    assert waits(given, stages, workdir)


def test_rollouts_of_two_policies_are_no_collection(star, compiled, tmp_path, capsys):
    workdir, stages = tmp_path / "run", method()
    shutil.copytree(star, workdir)
    record = workdir / "collect_2/handoff.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"checksum": 7, "step": 2}))
    told = "stale: it began from step 2 of tune_1, which now hands on another policy"
    run(workdir, stages)
    assert f"[collect_2] {told}" in capsys.readouterr().out
    max((workdir / "collect_2/rollouts").iterdir()).unlink()
    with pytest.raises(StorageError, match=told):
        run(workdir, stages)


def test_a_collection_is_drawn_by_the_trained_policy(star, compiled):
    stages = method()
    run(star, stages, mode="collect")
    kept = list(store.read(star / "tune_2_collected/rollouts"))
    assert len(kept) == 3 * 4 * 2
    loaded = load_policy(stages[-1], star)
    longest = max(len(one.tokens) for one in kept)
    rows = loaded.programs.to_global(rollouts.as_episodes(kept, longest))
    errors = [
        np.abs(np.asarray(loaded.programs.score(params, rows).logprobs) - rows.logprobs).max()
        for params in (loaded.params, loaded.reference)
    ]
    assert errors[0] < 1e-4 < 1e-2 < errors[1]


def test_an_adapter_alone_is_trained(star):
    stages = method()
    programs, trained = build(stages[-1].settings), last_state(star, stages[-1]).params
    fresh = programs.init_adapter()
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), trained, fresh)
    assert any(jax.tree.leaves(moved))
    whole = jax.tree.leaves(jax.eval_shape(programs.init_params.jitted, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) < sum(x.size for x in whole) / 2


def test_a_policy_is_measured_on_all_sets_after_training_and_when_asked(star, compiled, tmp_path):
    """On the task's own problems, on fewer of them, and on those of another split."""
    problems = {"evaluation": 4, "evaluation_few": 2, "evaluation_validation": 4}
    for name in ("tune_1", "tune_2"):
        assert {path.stem for path in (star / name).glob("evaluation*.json")} == set(problems)
    workdir = tmp_path / "run"
    shutil.copytree(star, workdir)
    for name in problems:
        (workdir / f"tune_2/{name}.json").unlink()
    run(workdir, method(), mode="evaluate")
    for name, count in problems.items():
        found, again = (
            json.loads((folder / f"tune_2/{name}.json").read_text()) for folder in (star, workdir)
        )
        assert len(found["outcomes"]["tune_2"]["greedy"]) == count
        assert (found["outcomes"], found["protocol"]) == (again["outcomes"], again["protocol"])
    own, few = (
        json.loads((star / f"tune_2/{name}.json").read_text())["outcomes"]["tune_2"]["greedy"]
        for name in ("evaluation", "evaluation_few")
    )
    assert own[:2] == few
