"""The table of runs: numbers in percent, groups by stage, mean and standard error."""

import json

import pytest

from score_jax.compare import table


def metric(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.02}


def write_run(folder, stage, seed, second):
    model = {"greedy": {"accuracy/turn1": metric(0.5), "accuracy/turn2": metric(second)}}
    model["greedy"]["delta"] = metric(second - 0.5)
    base = {"greedy": {"accuracy/turn1": metric(0.4), "delta": None}}
    (folder / stage).mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"stages": [stage]}))
    value = {"stage": stage, "training_seed": seed, "models": {"base": base, stage: model}}
    (folder / stage / "evaluation.json").write_text(json.dumps(value))
    return folder


def test_rows_stand_by_stage_with_their_mean(tmp_path):
    runs = [
        write_run(tmp_path / "a", "stage2", 0, 0.8),
        write_run(tmp_path / "b", "multi_turn", 0, 0.6),
        write_run(tmp_path / "c", "stage2", 1, 0.9),
    ]
    lines = table(runs).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert cells[0][:5] == ["model", "seed", "greedy @t1", "greedy @t2", "greedy Delta"]
    assert [c[:2] for c in cells[2:]] == [
        ["base", ""],
        ["stage2", "0"],
        ["stage2", "1"],
        ["**stage2**", "mean"],
        ["multi_turn", "0"],
    ]
    assert cells[3][2:5] == ["50.0", "80.0", "30.0 [29.0, 32.0]"]
    # mean of 80 and 90; their sample deviation 7.07 over the root of 2
    assert cells[5][3] == "85.0 ± 5.0"
    assert cells[2][4] == "-" and cells[3][7] == "-"  # undefined, and not measured


def test_a_folder_without_evaluation_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no evaluation.json"):
        table([tmp_path])
