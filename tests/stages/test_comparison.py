"""A comparison, run whole on a tiny model: each trial once, and on from any interruption."""

import json
import os
import shutil
import signal

import pytest
from ml_collections import ConfigDict

from score_jax.distributed.signals import Interrupted
from score_jax.distributed.watchdog import Watchdog
from score_jax.stages import comparison, evaluate
from score_jax.stages.comparison import run_comparison
from score_jax.stages.examples import NothingKeptError
from score_jax.stages.train import DivergenceError, StageRun, TrainingError
from tests.conftest import compile_cache
from tests.methods import COLLECT
from tests.tiny_stages import get_config, lines, refuse, without_times

MULTI = {
    "name": "multi",
    "objective.reward_weights": (0.0, 1.0),
    "objective.beta": (0.01, 0.01),
    "objective.gamma": 1.0,
}
GIVEN = {
    "name": "second",
    "start": "base",
    "share": 0.5,
    "objective.beta": (0.0, 0.01),
    "dialogue.sources": ("given", "sampled"),
    "data.first_attempts": "stage:collect",
}
METHODS = {
    "ask": {
        "title": "Ask",
        "variants": ({"evaluation.dialogue.instructions": ("", "Please correct it.")},) * 2,
    },
    "multi": {"stages": (MULTI,), "seeds": 2, "sets": {"own": {"turns": 3, "samples": 0}}},
    "given": {"budget": 0.75, "stages": (COLLECT | {"share": 0.5}, GIVEN)},
}
PARTS = {"validation": 5, "test": 6}  # problems


def shared(**fields):
    config = get_config()
    config.steps, config.checkpoint.every = 4, 2
    config.task, config.model = "equations", None
    config.weights.source = config.tokenizer.source = "embedded"  # the same for all seeds
    config.evaluation.update(
        {"problems": PARTS["test"], "batch": 6, "validation_problems": PARTS["validation"]}
    )
    config.comparison = ConfigDict(
        {
            "methods": ConfigDict(METHODS),
            "rates": (0.5, 1.0),
            "against": "multi",
            "scaled": ("multi",),
            "sets": ConfigDict({"votes": {"samples": 4, "problems": 3}}),
            **fields,
        }
    )
    return config


def run(workdir, config=None):
    run_comparison(config or shared(), {}, workdir, config="", command="it", watchdog=Watchdog(""))


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """A comparison without an interruption."""
    workdir = tmp_path_factory.mktemp("comparison")
    with compile_cache(cache):
        run(workdir)
    return workdir


def record(workdir):
    return json.loads((workdir / "comparison.json").read_text())


def lines_of(workdir):
    return (workdir / "comparison.log").read_text().splitlines()


def test_every_variant_is_trained_once_and_what_was_chosen_with_further_seeds(whole):
    found = {str(p.parent.relative_to(whole)) for p in whole.glob("*/*/*/run.json")}
    taken = record(whole)["methods"]["multi"]["taken"]
    assert found == {
        "multi/variant1/seed0", "multi/variant2/seed0", f"multi/variant{taken}/seed1",
        "given/variant1/seed0", "given/variant2/seed0",
    }  # fmt: skip


def test_only_what_was_chosen_is_measured_on_test_problems(whole):
    own = record(whole)["methods"]
    found = {str(p.parent.parent.relative_to(whole)) for p in whole.glob("*/*/*/*/test.json")}
    seeds = {"ask": (0,), "multi": (0, 1), "given": (0,)}
    assert found == {
        f"{name}/variant{own[name]['taken']}/seed{seed}" for name in seeds for seed in seeds[name]
    }
    tests = [json.loads(path.read_text()) for path in whole.glob("*/*/*/*/test.json")]
    assert {file["problems"] for file in tests} == {PARTS["test"]}
    tuned = [json.loads(path.read_text()) for path in whole.glob("*/*/*/*/evaluation.json")]
    assert {file["problems"] for file in tuned} == {PARTS["validation"]}
    assert not {p["problem"] for f in tests for m in f["transcripts"].values() for p in m} & {
        p["problem"] for f in tuned for m in f["transcripts"].values() for p in m
    }


def test_the_best_second_attempt_on_validation_problems_is_taken(whole):
    for own in record(whole)["methods"].values():
        values = [variant["turn2"] for variant in own["variants"]]
        assert own["taken"] == 1 + values.index(max(values))


def test_all_are_tuned_with_the_same_effort_and_say_so(whole):
    own = record(whole)["methods"]
    assert {method["validation_dialogues"] for method in own.values()} == {2 * PARTS["validation"]}
    assert {name: (m["dialogues"], m["updates"]) for name, m in own.items()} == {
        "ask": (0, 0), "multi": (4 * 8, 4), "given": (2 * 4 + 2 * 8, 2),
    }  # fmt: skip


def test_given_first_attempts_are_those_that_the_trial_collected(whole):
    taken = record(whole)["methods"]["given"]["taken"]
    folder = whole / f"given/variant{taken}/seed0"
    config = json.loads((folder / "second/config.json").read_text())
    assert config["data.first_attempts"] == "stage:collect"
    assert len(lines(folder / "second/metrics.jsonl")) == 2


def test_the_base_model_is_measured_once(whole):
    """Those who are asked alike take its numbers over; the others have their own."""
    base = json.loads((whole / "base/base/test.json").read_text())
    taken = record(whole)["methods"]["multi"]["taken"]
    own = json.loads((whole / f"multi/variant{taken}/seed0/multi/test.json").read_text())
    assert own["models"]["base"] == base["models"]["base"]
    scaling = record(whole)["methods"]["multi"]["scaling"]
    assert len(scaling["own"]["accuracy"]) == 3 and scaling["own"]["problems"] == PARTS["test"]
    votes = scaling["votes"]
    assert votes["problems"] == 3 and set(votes["votes"]) == {"2", "4"}
    assert record(whole)["base_scaling"]["votes"]["problems"] == 3


def test_one_log_has_a_line_for_each_trial_and_each_choice(whole):
    log = (whole / "comparison.log").read_text()
    for line in (
        "multi/variant1/seed0: 0.5 x rate, validation ",
        "given/variant2/seed0: 1 x rate, validation ",
        "multi: takes ",
    ):
        assert line in log
    assert (whole / "comparison.html").is_file() and (whole / "figures/curves.png").is_file()


def test_a_finished_comparison_trains_and_measures_nothing_again(whole, compiled, monkeypatch):
    monkeypatch.setattr(comparison, "train_chain", None)
    monkeypatch.setattr(comparison, "evaluate_models", None)
    before, log = record(whole), (whole / "comparison.log").read_text()
    run(whole)
    assert record(whole) == before and (whole / "comparison.log").read_text() == log
    (whole / "comparison.log").write_text(log.split("\n", 3)[-1])  # as of a run that was killed
    run(whole)
    assert sorted(lines_of(whole)) == sorted(log.splitlines())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"optimizer.learning_rate": 2e-2}, r"config\.optimizer\.learning_rate is 0\.02, but"),
        ({"evaluation.problems": 4}, r"config\.evaluation\.problems is 4, but .* begun with 6"),
        (
            {"comparison.methods.multi.sets.own.turns": 4},
            r"config\.comparison\.sets\.own\.turns is 4, but",
        ),
        (
            {"comparison.sets.votes.samples": 8},
            r"config\.comparison\.sets\.votes\.samples is 8, but",
        ),
    ],
)
def test_another_config_is_refused_in_the_same_workdir(whole, compiled, change, told):
    config = shared()
    config.update_from_flattened_dict(change)
    before = record(whole)
    with pytest.raises(ValueError, match=told):
        run(whole, config)
    assert record(whole) == before and json.loads((whole / "plan.json").read_text())["methods"]


class TrialBegunError(Exception):
    """A comparison has come to its first trial."""


def test_a_base_model_that_is_measured_stands_for_other_rates(whole, tmp_path, monkeypatch):
    def begun(*_, **__):
        raise TrialBegunError

    def measure(_, __, folder, *___, **____):
        assert folder != tmp_path / "base/base", "the base model is measured again"
        begun()

    monkeypatch.setattr(comparison, "train_chain", begun)
    monkeypatch.setattr(comparison, "evaluate_models", measure)
    shutil.copytree(whole / "base", tmp_path / "base")
    config = shared()
    config.optimizer.learning_rate = 2e-2
    with pytest.raises(TrialBegunError):
        run(tmp_path, config)


@pytest.mark.parametrize(
    "moment", ["tuning", pytest.param("seeds", marks=pytest.mark.slow), "measuring"]
)
def test_an_interrupted_comparison_ends_as_an_uninterrupted_one(
    whole, compiled, tmp_path, monkeypatch, moment
):
    workdir, taken = tmp_path / "run", record(whole)["methods"]["multi"]["taken"]
    shutil.copytree(whole, workdir)
    seed = {"tuning": 0, "seeds": 1, "measuring": 1}[moment]
    folder = workdir / f"multi/variant{taken}/seed{seed}"
    if moment == "measuring":
        (folder / "multi/test.json").unlink()
    else:
        shutil.rmtree(folder)
    left = [moment]

    def interrupt():
        if left:
            left.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    check, grade = StageRun.check, evaluate.grade_batch

    def checking(stage, step, values):
        if step == 3:
            interrupt()
        check(stage, step, values)

    def grading(*arguments, **options):
        interrupt()
        return grade(*arguments, **options)

    if moment == "measuring":
        monkeypatch.setattr(evaluate, "grade_batch", grading)
    else:
        monkeypatch.setattr(StageRun, "check", checking)
    with pytest.raises(Interrupted):
        run(workdir)
    run(workdir)
    assert not left and record(workdir) == record(whole)
    rows = [
        without_times(lines(root / f"multi/variant{taken}/seed{seed}/multi/metrics.jsonl"))
        for root in (workdir, whole)
    ]
    assert rows[0] == rows[1]


def test_what_cannot_be_trained_counts_as_tried(whole, compiled, tmp_path, monkeypatch):
    """One variant of a method and all of another: of the first, the other variant is taken."""
    workdir, taken = tmp_path / "run", record(whole)["methods"]["multi"]["taken"]
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / f"multi/variant{3 - taken}")
    shutil.rmtree(workdir / "given")
    grade = evaluate.grade_batch

    def diverge(*_):
        raise DivergenceError("loss is nan")

    monkeypatch.setattr(StageRun, "check", diverge)
    run(workdir)
    own = record(workdir)["methods"]
    assert own["multi"]["variants"][2 - taken]["failed"] == "loss is nan"
    assert own["multi"]["taken"] == taken and own["multi"]["seeds"] == [0, 1]
    assert own["given"]["taken"] is None and own["given"]["runs"] == []
    assert "given/variant1/seed0: 0.5 x rate, failed: loss is nan" in lines_of(workdir)
    assert "given: takes none, all of its variants failed" in lines_of(workdir)
    monkeypatch.setattr(comparison, "train_chain", None)
    run(workdir)  # tries nothing again
    assert record(workdir)["methods"] == own
    monkeypatch.undo()

    def grading(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return grade(*arguments, **options)

    (workdir / "given/variant2/seed0/failed.json").unlink()
    (workdir / f"multi/variant{taken}/seed1/multi/test.json").unlink()
    monkeypatch.setattr(StageRun, "check", diverge)
    monkeypatch.setattr(evaluate, "grade_batch", grading)
    with pytest.raises(Interrupted):  # a signal is heeded behind a failure too
        run(workdir)


@pytest.mark.parametrize(
    ("error", "counts"), [(NothingKeptError("none left"), True), (TrainingError("fault"), False)]
)
def test_a_fault_of_the_program_ends_the_comparison(
    whole, compiled, tmp_path, monkeypatch, error, counts
):
    shutil.copytree(whole, workdir := tmp_path / "run")
    shutil.rmtree(workdir / "given")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(comparison, "train_chain", fail)
    if counts:
        run(workdir)
    else:
        with pytest.raises(TrainingError, match="fault"):
            run(workdir)
    assert (workdir / "given/variant1/seed0/failed.json").is_file() == counts


def test_a_methods_own_measurements_are_refused_before_anything_runs(tmp_path):
    config = shared()
    config.comparison.methods.multi.sets.own.turns = 0
    with pytest.raises(ValueError, match="turns"):
        run(tmp_path / "run", config)
    assert not (tmp_path / "run").is_dir() or not list((tmp_path / "run").glob("multi/*"))


def test_a_method_of_another_budget_is_refused_before_anything_runs(tmp_path):
    config = shared()
    config.comparison.methods.multi.budget = 2.0
    with pytest.raises(ValueError, match=r"methods\.multi draws 32 dialogues, others 32"):
        run(tmp_path / "run", config)
    assert not (tmp_path / "run/multi").exists()


def test_a_comparison_has_no_other_modes():
    flags = ["--config=configs/paper.py", "--mode=export", "--workdir=none"]
    ((code, told),) = refuse([flags])
    assert code == 2 and "--mode is 'export', but the config compares methods" in told
