"""The table of runs: numbers in percent, groups by stage, mean and standard error."""

import json

import pytest

from score_jax.report.compare import table


def metric(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.02}


PROTOCOL = {"hash": "a", "turn_limit": 50, "chat": "plain"}


def write_run(folder, stage, seed, second, outcomes=("01", "10"), protocol=PROTOCOL, reference=7):
    model = {"greedy": {"accuracy/turn1": metric(0.5), "accuracy/turn2": metric(second)}}
    model["greedy"]["delta"] = metric(second - 0.5)
    base = {"greedy": {"accuracy/turn1": metric(0.4), "delta": None}}
    (folder / stage).mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"stages": [stage]}))
    value = {
        "stage": stage,
        "training_seed": seed,
        "models": {"base": base, stage: model},
        "outcomes": {stage: {"greedy": list(outcomes)}},
        "protocol": protocol,
        "reference": reference,
    }
    (folder / stage / "evaluation.json").write_text(json.dumps(value))
    return folder


def test_rows_stand_by_stage_with_their_mean(tmp_path):
    runs = [
        write_run(tmp_path / "a", "stage2", 0, 0.8, ["01", "11", "00", "11"]),
        write_run(tmp_path / "b", "multi_turn", 0, 0.6, ["01", "11", "00", "10"]),
        write_run(tmp_path / "c", "stage2", 1, 0.9, ["01", "11", "01", "10"]),
    ]
    caption, empty, *lines = table(runs).splitlines()
    lines, differences = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert "over runs and problems together" in caption and not empty
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert cells[0][:5] == ["model", "seed", "greedy @t1", "greedy @t2", "greedy Delta"]
    assert [c[:2] for c in cells[2:]] == [
        ["base", ""],
        ["stage2", "0"],
        ["stage2", "1"],
        ["**stage2**", "mean of 2"],
        ["multi_turn", "0"],
    ]
    assert cells[3][2:5] == ["50.0", "80.0 [79.0, 82.0]", "30.0 [29.0, 32.0]"]
    # by hand, of eight dialogues: 4 first and 6 second attempts right, 3 gained, 1 lost
    values = [text.split(" [")[0] for text in cells[5][2:7]]
    assert values == ["50.0", "75.0", "25.0", "37.5", "12.5"]
    low, high = (float(part) for part in cells[5][3].split(" [")[1].strip("]").split(", "))
    assert low < 75 < high
    # second attempts: 6 of 8 less 2 of 4; two runs against one have no test of pairs
    assert differences[-1].startswith("| stage2 - multi_turn | 0.0 [") and len(differences) == 3
    assert [c.split(" [")[0] for c in differences[-1].split(" | ")[2:]] == ["25.0", "25.0", "- |"]
    assert cells[2][4] == "-" and cells[3][7] == "-"  # undefined, and not measured


def test_two_single_runs_are_tested_on_the_problems_they_differ_on(tmp_path):
    """The one is right on six problems that the other fails: 2 of 64 tosses, 0.031."""
    right, wrong = ["01"] * 6 + ["11"], ["00"] * 6 + ["11"]
    runs = [
        write_run(tmp_path / "a", "stage2", 0, 0.8, right),
        write_run(tmp_path / "b", "single_turn", 0, 0.6, wrong),
    ]
    assert table(runs).splitlines()[-1].endswith("| 0.031 |")


OTHERS = {
    "the chat format": ({"protocol": PROTOCOL | {"hash": "b", "chat": "chatml"}}, "chat 'plain'"),
    "a limit": ({"protocol": PROTOCOL | {"hash": "c", "turn_limit": 64}}, "turn_limit 50 / 64"),
    "no protocol at all": ({"protocol": {}}, "turn_limit 50 / None"),
    "the base model": ({"reference": 8}, "another base model"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_runs_that_were_measured_in_other_ways_are_refused(tmp_path, name):
    fields, told = OTHERS[name]
    runs = [
        write_run(tmp_path / "a", "stage2", 0, 0.8),
        write_run(tmp_path / "b", "stage2", 1, 0.8, **fields),
    ]
    with pytest.raises(ValueError, match="measured in different ways") as error:
        table(runs)
    assert told in str(error.value)
    table(runs[:1])


def test_a_folder_without_evaluation_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no evaluation.json"):
        table([tmp_path])


def test_the_table_has_a_column_for_every_turn(tmp_path):
    path = write_run(tmp_path / "a", "stage2", 0, 0.8, ["011", "101", "000", "110"])
    value = json.loads((path / "stage2/evaluation.json").read_text())
    value["models"]["stage2"]["greedy"]["accuracy/turn3"] = metric(0.9)
    (path / "stage2/evaluation.json").write_text(json.dumps(value))
    other = write_run(tmp_path / "b", "stage2", 1, 0.7, ["011", "001", "001", "110"])
    _, _, *lines = table([path, other]).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert cells[0][2:6] == ["greedy @t1", "greedy @t2", "greedy @t3", "greedy Delta"]
    assert cells[3][2:5] == ["50.0", "80.0", "90.0 [89.0, 92.0]"]  # the last with its interval
    # by hand, of eight dialogues: 3 first, 4 second, 5 third attempts right; of the first and
    # the third attempt 4 gained, 2 lost
    values = [text.split(" [")[0] for text in cells[5][2:8]]
    assert values == ["37.5", "50.0", "62.5", "25.0", "50.0", "25.0"]


def test_a_table_of_one_turn_has_no_changes(tmp_path):
    path = write_run(tmp_path / "a", "stage2", 0, 0.8, ["0", "1"])
    value = json.loads((path / "stage2/evaluation.json").read_text())
    value["models"]["stage2"]["greedy"] = {"accuracy/turn1": metric(0.5)}
    (path / "stage2/evaluation.json").write_text(json.dumps(value))
    heading = table([path]).splitlines()[2]
    assert heading == "| model | seed | greedy @t1 | T=1 @t1 |"
