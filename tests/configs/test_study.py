"""The study's configs, and the script that runs them."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import base_models, study
from score_jax.stages.build import greedy_sampling
from score_jax.stages.resolve import planned, resolve_stages
from score_jax.stages.settings import build_section
from score_jax.stages.trials import ComparisonConfig, Spent, Trial, check_budgets
from tests.small_models import small_qwen

SCRIPT = Path(__file__).parents[2] / "launch/study.sh"
TOLD = """#!{python} -SE
import json, os, sys, time
words = sys.argv[1:]
flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
folder = flags["workdir"]
place = folder + "/warm_up" if folder.endswith("warm_up") else folder + "/base"
if place.endswith("base"):
    place += "/base"
os.makedirs(place, exist_ok=True)
open(place + "/test.json", "a").close()
if flags.get("mode") == "export":
    open(place + "/export.json", "w").close()
share = os.environ.get("XLA_CLIENT_MEM_FRACTION")
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([flags, share]) + "\\n")
time.sleep(0.2)
sys.exit(int(folder.endswith(os.environ.get("FAILS", "none"))))
"""


def variants(config):
    """The comparison's methods, and the settings of the stages of each of their variants."""
    comparison = build_section(ComparisonConfig, config.comparison, "config.comparison")
    found = comparison.chosen_methods()
    settings = {name: [] for name in found}
    for name, method in found.items():
        for number, fields in enumerate(comparison.variants(method), 1):
            trial = Trial(
                name=name, method=method, variant=number, fields=tuple(fields.items()), seed=0
            )
            stages = trial.stages(config, {}, "test")
            settings[name].append([stage.settings for stage in stages])
    return found, settings


@pytest.mark.parametrize("size", study.SIZES)
def test_all_methods_are_tuned_alike_draw_as_many_dialogues_and_learn_from_as_many(size):
    config = study.get_config(size)
    found, settings = variants(config)
    assert set(found) == set(study.METHODS) and found["score"].seeds == 3
    rows = config.batch * config.sampling.group_size
    spent = {name: Spent.of(own[0]) for name, own in settings.items()}
    check_budgets(spent, found, config.steps * rows)
    assert {one.updates for one in spent.values()} == {config.steps}
    rates = {}
    for name, own in settings.items():
        rates[name] = [stages[-1].optimizer.learning_rate for stages in own]
        for stages in own:
            assert {s.compute.dtype for s in stages} == {config.compute.dtype}
            assert stages[-1].rows == rows
    rate = {"gpu": 4e-5, "cpu": 1e-5}[size]
    assert rates["score"] == rates["multi_turn"] == pytest.approx([rate / 2, rate, 2 * rate])
    assert rates["pair_sft"] == pytest.approx([rate / 8, rate / 4, rate / 2])


def test_an_arm_holds_stage_one_ten_times_as_hard_and_is_scores_otherwise():
    config = study.get_config("cpu")
    config.comparison.only = ("multi_turn", "score", "score_held")
    found, settings = variants(config)
    assert found["score_held"].seeds == found["score"].seeds
    for ours, theirs in zip(settings["score_held"], settings["score"], strict=True):
        assert ours[0].objective.beta == pytest.approx((1.1, 0.01))
        assert theirs[0].objective.beta == (0.11, 0.01)
        held = dataclasses.replace(theirs[0].objective, beta=ours[0].objective.beta)
        assert ours == [dataclasses.replace(theirs[0], objective=held), theirs[1]]


def test_sampled_evaluation_runs_the_sampler_of_training():
    """On a GPU, where compiling another one is most of the time."""
    _, settings = variants(study.get_config("gpu"))
    own = settings["score"][0][-1]
    sampled = dataclasses.replace(
        greedy_sampling(own),
        group_size=own.evaluation.samples,
        temperature=own.evaluation.temperature,
    )
    assert sampled == own.sampling and own.evaluation.batch == own.batch


def test_the_warm_up_learns_both_turns_and_looks_at_no_test_problem():
    alone, both = (s.settings for s in resolve_stages(study.get_config("warm_up_gpu"), {}))
    assert dict(alone.examples) == {"source": "answers", "mistaken": 0.0}
    assert dict(both.examples) == {"source": "answers", "mistaken": 0.5}
    for settings, turns in ((alone, 1), (both, 2)):
        assert (settings.program, settings.plan.turns, settings.batch) == ("supervised", turns, 64)
        assert dict(settings.evaluation.data)["split"] == "validation"
    with pytest.raises(ValueError, match=r"part is 'none'; choose one of gpu, cpu, warm_up_gpu"):
        study.get_config("none")


def test_a_base_model_is_measured_on_all_sets():
    settings = planned(resolve_stages(base_models.get_config(), {}))
    measured = settings.measured_sets
    tasks = {name: own.evaluation.task for name, own in measured.items()}
    assert tasks == {"mbpp": "code", "gsm8k": "math", "math500": "math"}
    assert settings.evaluation.task == "humaneval"
    limits = {own.sampling.turn_limit for own in (settings, *measured.values())}
    assert limits == {1024}
    assert base_models.get_config("qwen3_0p6b_thinking").sampling.turn_limit == 4096


def test_a_base_model_is_measured_on_mathematics_alone():
    settings = planned(resolve_stages(base_models.get_config("smollm2_135m_math"), {}))
    assert settings.measured_data["name"] == "math" and settings.evaluation.problems == 500
    (gsm8k,) = settings.measured_sets.values()
    assert gsm8k.measured_data["name"] == "gsm8k" and gsm8k.evaluation.problems == 500


@pytest.fixture
def run(tmp_path):
    """Runs the script with a python that tells what it was asked for."""
    python = tmp_path / "python"
    python.write_text(TOLD.replace("{python}", sys.executable))
    python.chmod(0o755)

    def start(*flags, **more):
        calls = tmp_path / "calls"
        calls.write_text("")
        done = subprocess.run(
            ["bash", SCRIPT, f"--workdir={tmp_path}/study", *flags],
            env=os.environ | {"PYTHON": str(python), "CALLS": str(calls)} | more,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        return done, [json.loads(line) for line in calls.read_text().splitlines()]

    return start


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in a minute"
        time.sleep(0.05)


def asked(calls):
    """The config and the methods of each call."""
    return [(f["config"], f.get("config.comparison.only", f.get("mode", ""))) for f, _ in calls]


def test_the_script_warms_up_once_trains_every_method_and_compares_them(run, tmp_path):
    done, calls = run("--jobs=2", "--config.steps=60")
    assert done.returncode == 0, done.stderr
    names = {name: f'("{name}",)' for name in study.METHODS}
    warm, own = "configs/study.py:warm_up_gpu", "configs/study.py:gpu"
    all_of_them = '("pair_sft","single_turn","multi_turn","score",)'
    assert ["config.steps" in flags for flags, _ in calls[:3]] == [False, False, True]
    found = asked(calls)
    assert found[:2] == [(warm, ""), (warm, "export")]
    assert sorted(only for _, only in found[2:6]) == sorted(names.values())
    assert found[6:] == [(own, all_of_them)]
    for flags, share in calls[2:6]:
        assert share == "0.450" and flags["config.steps"] == "60"
        assert flags["config.weights.source"] == f"{tmp_path}/study/warm_up/warm_up/export"
    together = tmp_path / "study/comparison"
    assert {path.name for path in together.iterdir()} == {*study.METHODS, "base"}
    assert (together / "score").readlink() == Path("../methods/score/score")
    again, calls = run("--size=cpu", "--weights=other.gguf")
    assert again.returncode == 0 and "the warm-up is done, in" in again.stdout
    assert asked(calls)[0] == ("configs/study.py:cpu", names["pair_sft"])


def test_what_is_warmed_up_may_be_another_model_and_methods_train_what_was_warmed_up(run):
    _, calls = run("--weights=other.gguf")
    assert [f["config.weights.source"] for f, _ in calls[:2]] == ["other.gguf"] * 2
    assert all(f["config.weights.source"].endswith("export") for f, _ in calls[2:])
    for flag in ("weights.source=x", "comparison.only=()", "batch=16"):
        done, calls = run(f"--config.{flag}")
        assert done.returncode == 2 and f"--config.{flag} is set by the study" in done.stderr
        assert not calls


@pytest.mark.parametrize(
    ("chosen", "against"), [("score multi_turn", "multi_turn"), ("score single_turn", "score")]
)
def test_some_of_the_methods_may_be_chosen(run, chosen, against):
    _, calls = run(f"--methods={chosen}")
    names = chosen.split()
    assert [only for _, only in asked(calls)[2:4]] == [f'("{name}",)' for name in names]
    last, _ = calls[-1]
    assert last["config.comparison.only"] == f'("{names[0]}","{names[1]}",)'
    assert last["config.comparison.against"] == against and len(calls) == 5
    for bad, told in (
        ("=score none", "has 'none'; choose of pair_sft"),
        ("=score score", "has 'score' twice; name it once"),
        ("=", "is empty"),
        ("", "there is no flag '--methods'; --help lists them"),
    ):
        done, calls = run(f"--methods{bad}")
        assert done.returncode == 2 and told in done.stderr and not calls


def test_a_method_that_fails_leaves_the_others_running_and_is_told(run):
    done, calls = run(FAILS="pair_sft")
    assert done.returncode == 1 and "error: pair_sft failed; the logs in" in done.stderr
    assert '("score",)' in [only for _, only in asked(calls)]
    assert len(calls) == 6  # and they are not compared
    done, _ = run("--jobs=0")
    assert done.returncode == 2 and "--jobs is '0'" in done.stderr
    done, _ = run("--size=tpu")
    assert done.returncode == 2 and "--size is 'tpu'; choose gpu or cpu" in done.stderr


@pytest.mark.parametrize("name", study.METHODS)
def test_every_failure_is_told_also_of_methods_that_end_together(run, name):
    done, _ = run("--jobs=4", FAILS=name)
    assert done.returncode == 1 and f"error: {name} failed" in done.stderr


def test_a_signal_stops_the_methods_that_run(tmp_path):
    python = tmp_path / "python"
    python.write_text(f"""#!{sys.executable} -SE
import os, sys, time
if "methods" in " ".join(sys.argv):
    open(os.environ["ALIVE"] + str(os.getpid()), "w").close()
    time.sleep(60)
""")
    python.chmod(0o755)
    alive = tmp_path / "alive"
    alive.mkdir()
    script = subprocess.Popen(
        ["bash", SCRIPT, f"--workdir={tmp_path}/study", "--jobs=2"],
        env=os.environ | {"PYTHON": str(python), "ALIVE": f"{alive}/"},
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: len(list(alive.iterdir())) == 2)
    script.terminate()
    assert script.wait(timeout=30) == 143
    for one in alive.iterdir():
        assert not Path(f"/proc/{one.name}").exists()


@pytest.mark.slow
def test_the_script_goes_from_a_base_model_to_the_comparison(tmp_path):
    """With a random model of two narrow layers as what was warmed up; it is never right."""
    warm = tmp_path / "study/warm_up/warm_up"
    small_qwen(warm / "export")
    (warm / "export.json").write_text("{}")
    fields = {
        "comparison.rates": "(1.0,)",
        "comparison.seeds": 1,
        "steps": 2,
        "sampling.prompt_limit": 64,
        "learner.microbatches": 1,
        "checkpoint.every": 1,
        "evaluation.problems": 4,
        "evaluation.validation_problems": 4,
        "evaluation.batch": 4,
        "evaluation.samples": 1,
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    done = subprocess.run(
        ["bash", SCRIPT, f"--workdir={tmp_path}/study", "--size=cpu", "--jobs=2", *flags],
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    record = json.loads((tmp_path / "study/comparison/comparison.json").read_text())
    assert set(record["methods"]) == set(study.METHODS)
    assert "greedy" in record["methods"]["score"]
    first = (tmp_path / "study/methods/single_turn/base/base/test.json").read_bytes()
    assert first == (tmp_path / "study/methods/score/base/base/test.json").read_bytes()
