"""Stage after stage: what is run, handed on, reset, kept and measured."""

import io
import json
import shutil
from contextlib import redirect_stdout

import jax
import numpy as np
import pytest

from score_jax.data import store
from score_jax.stages import chain
from score_jax.stages import train as training
from score_jax.stages.build import build, load_reference
from score_jax.stages.checkpoint import StorageError, fingerprint
from score_jax.stages.handoff import load_parent_policy, open_checkpoints
from score_jax.stages.train import TrainingError
from tests.stage_configs import stages, train
from tests.tiny_stages import assert_same_tree, lines


@pytest.fixture(scope="module")
def chained(tmp_path_factory, cache):
    """Stage II asked for in an empty workdir.

    Returns the workdir, what was printed, which policies were measured, and of each rollout the
    stage, the ordinals of its draws, its problems and its dialogues.
    """
    workdir = tmp_path_factory.mktemp("chain")
    measured, measure = [], chain.evaluate.measure_model
    rollouts, collect = [], training.collect_rollout
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(told):

        def remember(programs, params, *rest, **options):
            measured.append((programs.settings.name, options["step"], int(fingerprint(params))))
            return measure(programs, params, *rest, **options)

        def watch(*arguments, problems, draws, **options):
            found = collect(*arguments, problems=problems, draws=draws, **options)
            turn, tokens = found.local.turn, found.local.tokens
            firsts = [tuple(row[own == 1]) for row, own in zip(tokens, turn, strict=True)]
            rollouts.append((draws.tolist(), [problem.id for problem in problems], firsts))
            return found

        patch.setattr(chain.evaluate, "measure_model", remember)
        patch.setattr(training, "collect_rollout", watch)
        train(workdir, "stage2", steps=4)
    return workdir, told.getvalue(), measured, rollouts


@pytest.fixture
def copy(chained, tmp_path):
    return shutil.copytree(chained[0], tmp_path / "run")


def rewards_by_window(folder, weights, every=2):
    """Mean training reward of the steps before each checkpoint, from the log."""
    rows = lines(folder / "metrics.jsonl")
    totals = [
        sum(weight * row[f"reward/turn{turn}"] for turn, weight in enumerate(weights, 1))
        for row in rows
    ]
    return {
        step: float(np.mean(totals[step - every : step]))
        for step in range(every, len(rows) + 1, every)
    }


def best_of(rewards):
    return max(rewards, key=lambda step: (rewards[step], step))


def opened(workdir, stage):
    return open_checkpoints(stage.settings, workdir / stage.settings.name)


def test_stage_two_runs_stage_one_first_and_says_so(chained):
    workdir, told, *_ = chained
    said = told.splitlines()
    first = said.index(f"[stage1] 6 steps in {workdir / 'stage1'}")
    second = said.index(f"[stage2] 4 steps in {workdir / 'stage2'}")
    assert first < second
    assert said[-1] == f"report: {workdir / 'report.html'}"
    record = json.loads((workdir / "run.json").read_text())
    assert record["stages"] == ["stage1", "stage2"]
    assert set(record["versions"]) >= {"jax", "flax", "optax"}


def test_stage_two_draws_other_problems_and_attempts_than_stage_one(chained):
    """Its stream goes on where that of Stage I stopped, whichever checkpoint was handed on."""
    *_, rollouts = chained
    draws = [ordinal for step, _, _ in rollouts for ordinal in step]
    assert draws == list(range(6 * 4 + 4 * 4))
    problems = [name for _, step, _ in rollouts for name in step]
    assert len(set(problems)) == len(problems)
    firsts = [first for _, _, step in rollouts for first in step]
    assert len(set(firsts)) > len(firsts) // 2  # two of a random model's may be equal by chance


def test_a_stage_whose_parent_went_on_is_called_stale(copy, compiled, capsys):
    train(copy, "stage2", steps=4)
    assert "stale" not in capsys.readouterr().out
    record = json.loads((copy / "stage2/handoff.json").read_text())
    (copy / "stage2/handoff.json").write_text(json.dumps(record | {"checksum": 1}))
    train(copy, "stage2", steps=4)
    told = capsys.readouterr().out
    assert f"[stage2] stale: it began from step {record['step']} of stage1" in told
    assert f"delete {copy / 'stage2'}" in told


def test_the_best_by_training_reward_is_handed_on_and_measured(chained):
    workdir, _, measured, _ = chained
    first, second = stages("stage2", steps=4)
    one = rewards_by_window(workdir / "stage1", (0.0, 1.0))
    two = rewards_by_window(workdir / "stage2", (1.0, 1.0))
    handoff = json.loads((workdir / "stage2/handoff.json").read_text())
    assert handoff["parent"] == "stage1"
    assert handoff["step"] == best_of(one)
    assert handoff["metrics"]["training_reward"] == pytest.approx(one[best_of(one)], abs=1e-6)
    assert "optimizer" in handoff["reset"]
    for name, rewards in (("stage1", one), ("stage2", two)):
        evaluation = json.loads((workdir / name / "evaluation.json").read_text())
        assert evaluation["step"] == evaluation["models"][name]["step"] == best_of(rewards)
    for stage, rewards in ((first, one), (second, two)):
        programs = build(stage.settings)
        with opened(workdir, stage) as checkpoints:
            params = checkpoints.restore_params(best_of(rewards), programs.abstract_state())
        expected = (stage.settings.name, best_of(rewards), int(fingerprint(params)))
        assert expected in measured
    assert len(measured) == 3  # the base once, each stage once


def test_a_checkpoint_can_be_chosen_on_validation_problems(tmp_path, compiled, capsys):
    looks = {"evaluation__every": 1, "evaluation__validation_problems": 16}
    train(tmp_path, checkpoint__select="validation", steps=5, **looks)
    rows = lines(tmp_path / "stage1/metrics.jsonl")
    found = {row["step"]: row["validation/accuracy/turn2"] for row in rows}
    assert sorted(found) == [1, 2, 3, 4, 5]
    assert all(value * 16 == round(value * 16) for value in found.values())
    best = best_of({step: found[step] for step in (2, 4, 5)})  # those with a checkpoint
    evaluation = json.loads((tmp_path / "stage1/evaluation.json").read_text())
    assert evaluation["step"] == best
    assert evaluation["selection"] == {
        "by": "validation", "step": best, "score": found[best], "candidates": 3, "window": 2,
    }  # fmt: skip
    assert f"step {best} by validation accuracy" in capsys.readouterr().out


def test_second_attempts_at_one_first_attempt_are_trained_by_a_config(tmp_path, compiled):
    fields = {"group_size": 4, "second_attempts": 2, "redraws": 2}
    options = {f"sampling__{name}": value for name, value in fields.items()}
    baseline = "leave_one_out_attempt"
    train(tmp_path, "stage1", steps=2, estimator__baseline=baseline, **options)
    rows = lines(tmp_path / "stage1/metrics.jsonl")
    assert all(np.isfinite(row["loss"]) and row["gradient_norm"] > 0 for row in rows)
    firsts, whole = {}, set()
    for one in store.read(tmp_path / "stage1/rollouts"):
        assert one.attempt == one.sample // 2 * 2
        place = (one.step, one.draw, one.attempt)
        firsts.setdefault(place, set()).add(one.attempts[0])
        whole.add((*place, one.attempts))
    assert len(firsts) == 2 * 4 * 2  # steps, problems, first attempts
    assert all(len(texts) == 1 for texts in firsts.values())
    assert len(whole) > len(firsts)  # second attempts differ


def test_single_turn_rl_draws_one_attempt_and_is_measured_on_two(tmp_path, compiled):
    weights = {"objective__reward_weights": (1.0,), "objective__beta": (0.01,)}
    train(tmp_path, steps=2, log__rollouts_every=1, **weights)
    rows = lines(tmp_path / "stage1/metrics.jsonl")
    assert all("accuracy/turn1" in row and "accuracy/turn2" not in row for row in rows)
    dialogues = store.read(tmp_path / "stage1/rollouts")
    assert {(d.step, len(d.attempts), len(d.rewards)) for d in dialogues} == {(0, 1, 1), (1, 1, 1)}
    evaluation = json.loads((tmp_path / "stage1/evaluation.json").read_text())
    assert "accuracy/turn2" in evaluation["models"]["stage1"]["greedy"]
    assert all(len(outcome) == 2 for outcome in evaluation["outcomes"]["stage1"]["greedy"])
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_the_optimizer_begins_anew_from_the_handed_on_policy(chained, compiled, tmp_path):
    workdir, *_ = chained
    first, second = stages("stage2", steps=4)
    programs = build(second.settings)
    params = load_parent_policy(first, tmp_path, workdir)
    with opened(workdir, first) as checkpoints:
        step = best_of(rewards_by_window(workdir / "stage1", (0.0, 1.0)))
        handed_on, _ = checkpoints.restore(step, build(first.settings).abstract_state())
    assert_same_tree(params, handed_on.params)
    state = programs.init_state(params)
    assert int(state.step) == 0 and not np.any(state.baseline)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(handed_on.opt_state))
    with opened(workdir, second) as checkpoints:
        last, _ = checkpoints.restore(checkpoints.steps()[-1], programs.abstract_state())
    assert int(last.step) == 4


def test_the_reference_is_the_base_through_both_stages(chained, compiled):
    """KL is 0 where Stage I begins, at the base, and not where Stage II does."""
    workdir, *_ = chained
    one, two = (lines(workdir / name / "metrics.jsonl") for name in ("stage1", "stage2"))
    for turn in (1, 2):
        assert one[0][f"kl/turn{turn}"] == pytest.approx(0, abs=1e-6)
        assert two[0][f"kl/turn{turn}"] > 1e-3
    first, second = (build(stage.settings) for stage in stages("stage2", steps=4))
    assert_same_tree(load_reference(first), load_reference(second))


def test_the_parents_measurements_are_taken_over(chained):
    workdir, *_ = chained
    one, two = (
        json.loads((workdir / name / "evaluation.json").read_text())["models"]
        for name in ("stage1", "stage2")
    )
    assert list(two) == ["base", "stage1", "stage2"]
    assert (two["base"], two["stage1"]) == (one["base"], one["stage1"])


def test_a_finished_stage_is_not_run_again(copy, compiled, capsys):
    stages = ("stage1", "stage2")
    before = {name: (copy / name / "metrics.jsonl").stat().st_mtime_ns for name in stages}
    train(copy, "stage2", steps=4)
    assert before == {name: (copy / name / "metrics.jsonl").stat().st_mtime_ns for name in stages}
    told = capsys.readouterr().out
    assert all(f"[{name}] already finished: {copy / name}" in told for name in stages)


def test_a_workdir_of_another_config_is_refused_and_left_alone(copy):
    before = sorted((p, p.stat().st_mtime_ns) for p in (copy / "stage1").rglob("*"))
    message = r"config.seed is 3, but .*stage1 was begun with 0; choose another --workdir"
    with pytest.raises(ValueError, match=message):
        train(copy, "stage2", steps=4, seed=3)
    message = r"config.objective.alpha is 2.0, but .*stage2 was begun with 10.0"
    with pytest.raises(ValueError, match=message):
        train(copy, "stage2", steps=4, objective__alpha=2.0)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (copy / "stage1").rglob("*"))


def test_a_stage_that_ends_later_goes_on_where_it_was(copy, compiled):
    train(copy, "stage2", steps=6, checkpoint__every=3)
    assert [row["step"] for row in lines(copy / "stage2/metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("mode", ["evaluate", "report"])
def test_parts_work_on_a_finished_run(copy, compiled, mode):
    (copy / "report.html").unlink()
    if mode == "evaluate":
        (copy / "stage2/evaluation.json").unlink()
    train(copy, "stage2", mode=mode, steps=4)
    assert (copy / "report.html").stat().st_size > 10_000
    evaluation = json.loads((copy / "stage2/evaluation.json").read_text())
    assert list(evaluation["models"]) == ["base", "stage1", "stage2"]


@pytest.mark.parametrize("mode", ["evaluate", "report"])
def test_parts_work_on_an_unfinished_run(copy, compiled, mode):
    """The last checkpoint of a stage that is asked for more steps than it has done."""
    (copy / "stage2/evaluation.json").unlink()
    train(copy, "stage2", mode=mode, steps=40)
    assert (copy / "report.html").stat().st_size > 10_000
    if mode == "evaluate":
        assert json.loads((copy / "stage2/evaluation.json").read_text())["step"] == 4


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(tmp_path, compiled):
    message = r"step \d: .*(nan|not finite); there is no checkpoint yet. Lower optimizer.learning"
    with pytest.raises(TrainingError, match=message):
        train(tmp_path, optimizer__learning_rate=1e38, optimizer__warmup=0)
    assert not [p for p in (tmp_path / "stage1/checkpoints").iterdir() if p.name.isdigit()]
    assert all(np.isfinite(row["loss"]) for row in lines(tmp_path / "stage1/metrics.jsonl"))


def test_a_gap_between_sampler_and_scorer_stops_the_run(copy, compiled):
    message = r"step 5: sampler and scorer differ by .* in turn 1, .* 0.0; the last .* step 4"
    with pytest.raises(TrainingError, match=message):
        train(copy, "stage2", steps=6, mismatch_limit=0.0)
    assert len(lines(copy / "stage2/metrics.jsonl")) == 4


def test_a_prompt_that_is_too_long_is_named_and_the_remedy_works(tmp_path, compiled):
    with pytest.raises(ValueError, match=r"sampling.prompt_limit is 4; problem '.*' has \d+ tok"):
        train(tmp_path, sampling__prompt_limit=4)
    train(tmp_path, steps=1)  # nothing was saved, so another limit makes it no other run
    assert len(lines(tmp_path / "stage1/metrics.jsonl")) == 1


def test_a_parent_that_is_unfinished_hands_nothing_on(copy):
    first, _ = stages("stage2")
    later = stages("stage1", steps=60)[0]
    with pytest.raises(StorageError, match=r"stage1 has no finished checkpoint; run stage1 first"):
        load_parent_policy(later, copy, copy)
    assert first.settings.steps == 6
