"""A list of stages becomes configs: names, starts, rounds, and which value wins."""

import re

import pytest

from score_jax.stages.methods import expand, is_method
from score_jax.stages.resolve import resolve_stages
from tests.methods import TUNE
from tests.tiny_stages import get_config, refuse

COLLECT = {"name": "collect", "program": "collect"}
RL = {"name": "polish", "steps": 3, "objective.alpha": 5.0, "sampling.group_size": 4}


def method(*entries, rounds=1, **fields):
    config = get_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    config.stages, config.rounds = entries, rounds
    return config


def starts(*entries, rounds=1):
    """Name of each stage, and that of the stage it starts from."""
    return [(stage.name, start) for stage, start in expand(method(*entries, rounds=rounds), {})]


def named(name, start="", **fields):
    return {"name": name, "start": start, **fields}


def test_a_config_is_a_method_if_it_lists_stages():
    assert is_method(method(RL)) and not is_method(get_config())
    config = get_config()
    del config.stages
    assert not is_method(config)  # of an earlier version


@pytest.mark.parametrize("entries", [(RL,), (COLLECT, TUNE), (named("b"), named("a"))])
def test_entries_run_in_their_order_and_in_one_round_under_their_own_names(entries):
    assert [name for name, _ in starts(*entries)] == [entry["name"] for entry in entries]


def test_rounds_repeat_the_list_and_number_the_names():
    found = [name for name, _ in starts(COLLECT, TUNE, RL, rounds=3)]
    assert found == [f"{name}_{n}" for n in (1, 2, 3) for name in ("collect", "tune", "polish")]


@pytest.mark.parametrize("start", ["", "previous"])
def test_a_stage_starts_from_the_latest_one_that_trains(start):
    """A stage that collects is none: it hands nothing on."""
    entries = (
        named("look", start, program="collect"),
        named("one", start),
        named("keep", start, program="collect"),
        named("two", start),
    )
    assert starts(*entries) == [("look", ""), ("one", ""), ("keep", "one"), ("two", "one")]
    assert starts(*entries, rounds=2) == [
        ("look_1", ""),
        ("one_1", ""),
        ("keep_1", "one_1"),
        ("two_1", "one_1"),
        ("look_2", "two_1"),
        ("one_2", "two_1"),
        ("keep_2", "one_2"),
        ("two_2", "one_2"),
    ]


def test_a_stage_may_start_from_the_base_model_in_every_round():
    found = starts(COLLECT, TUNE, rounds=3)
    assert found == [
        ("collect_1", ""),
        ("tune_1", ""),
        ("collect_2", "tune_1"),
        ("tune_2", ""),
        ("collect_3", "tune_2"),
        ("tune_3", ""),
    ]


def test_a_name_means_the_entrys_latest_run():
    """Of this round where it stands earlier in the list, else of the round before."""
    entries = (named("a"), named("b", "a"), named("c", "a"), named("d", "b"))
    assert starts(*entries)[2:] == [("c", "a"), ("d", "b")]
    found = dict(starts(*entries, rounds=3))
    for turn in ("1", "2", "3"):
        assert found[f"c_{turn}"] == f"a_{turn}" and found[f"d_{turn}"] == f"b_{turn}"
    assert found["a_3"] == "d_2"


def test_a_run_of_an_earlier_round_may_be_named():
    entries = (named("a"), named("b", "a_1"))
    assert starts(*entries, rounds=3)[1::2] == [("b_1", "a_1"), ("b_2", "a_1"), ("b_3", "a_1")]


def test_rollouts_are_read_from_the_entrys_latest_run():
    entries = (COLLECT, TUNE, {**TUNE, "name": "again", "examples.stage": "collect_1"})
    stages = {stage.name: stage for stage, _ in expand(method(*entries, rounds=2), {})}
    assert [stages[f"tune_{n}"].examples.stage for n in (1, 2)] == ["collect_1", "collect_2"]
    assert [stages[f"again_{n}"].examples.stage for n in (1, 2)] == ["collect_1"] * 2
    # Before the first run of an entry its name is that of another stage of the workdir.
    early = (TUNE, COLLECT)
    stages = {stage.name: stage for stage, _ in expand(method(*early, rounds=2), {})}
    assert [stages[f"tune_{n}"].examples.stage for n in (1, 2)] == ["collect", "collect_1"]


def test_an_entrys_fields_are_its_own_and_the_rest_is_shared():
    config = method(RL, named("plain"), {"name": "last", "objective.beta": (0.5, 0.25)}, batch=6)
    before = config.to_dict()
    polish, plain, last = (stage for stage, _ in expand(config, {}))
    assert (polish.steps, polish.objective.alpha, polish.sampling.group_size) == (3, 5.0, 4)
    assert (plain.steps, plain.objective.alpha, plain.sampling.group_size) == (6, 0.0, 2)
    assert last.objective.beta == (0.5, 0.25) and plain.objective.beta == (0.11, 0.01)
    assert [stage.batch for stage in (polish, plain, last)] == [6] * 3
    assert all("stages" not in stage and "rounds" not in stage for stage in (polish, plain, last))
    assert config.to_dict() == before


def test_the_command_line_has_the_last_word_in_every_stage():
    overrides = {"steps": 9, "objective.alpha": 1.0, "sampling.turn_limit": 5}
    config = method(RL, named("plain"), COLLECT)
    config.update_from_flattened_dict(overrides)
    for stage, _ in expand(config, overrides | {"rounds": 1, "stages": ()}):
        found = (stage.steps, stage.objective.alpha, stage.sampling.turn_limit)
        assert found == (9, 1.0, 5)
    first, *_ = expand(config, overrides)
    assert first[0].sampling.group_size == 4


def test_arguments_that_only_a_source_knows_may_be_given():
    entry = {"name": "a", "examples.keep": "all", "data.source": "jsonl", "data.path": "x.jsonl"}
    ((stage, _),) = expand(method(entry), {})
    assert stage.examples.keep == "all"
    assert (stage.data.source, stage.data.path) == ("jsonl", "x.jsonl")


def test_main_makes_settings_of_the_stages():
    config = method(COLLECT, TUNE, RL, rounds=2, seed=7)
    found = resolve_stages(config, {"seed": 7})
    assert [stage.settings.name for stage in found] == [
        "collect_1", "tune_1", "polish_1", "collect_2", "tune_2", "polish_2",
    ]  # fmt: skip
    parents = [stage.parent and stage.parent.settings.name for stage in found]
    assert parents == [None, None, "tune_1", "polish_1", None, "tune_2"]
    assert all(stage.settings.seed == 7 for stage in found)
    tune, polish = found[4], found[5]
    assert polish.parent is tune
    assert tune.settings.program == "supervised"
    assert dict(tune.settings.examples) == {"source": "rollouts", "stage": "collect_2"}
    assert (polish.settings.steps, polish.settings.objective.alpha) == (3, 5.0)
    assert polish.config.name == "polish_2" and "stages" not in polish.config


WRONG = {
    "no rounds": (
        {"entries": [RL], "rounds": 0},
        r"config\.stages: config\.rounds is 0; set at least 1",
    ),
    "no name": (
        {"entries": [RL, {"steps": 3}]},
        r"config\.stages\[1\] is \{'steps': 3\}; give a dict with a name and fields",
    ),
    "an empty name": (
        {"entries": [{"name": ""}]},
        r"config\.stages\[0\] is \{'name': ''\}; give a dict with",
    ),
    "no dict": ({"entries": ["stage1"]}, r"config\.stages\[0\] is 'stage1'; give a dict with"),
    "a name that is no folder": ({"entries": [named("../x")]}, r"config\.name is '\.\./x'; it nam"),
    "a name twice": (
        {"entries": [named("a"), named("b"), named("a")]},
        r"config\.stages names \['a', 'b', 'a'\]; give each entry a name of its own",
    ),
    "no such field": (
        {"entries": [RL, named("a", stpes=3)]},
        r"config\.stages\[1\] has 'stpes'; there is no field config\.stpes",
    ),
    "no such field of a section": (
        {"entries": [{"name": "a", "objective.aplha": 3.0}]},
        r"config\.stages\[0\] has 'objective\.aplha'; there is no field config\.objective\.aplha",
    ),
    "no such section": (
        {"entries": [{"name": "a", "goal.alpha": 3.0}]},
        r"config\.stages\[0\] has 'goal\.alpha'; there is no field config\.goal\.alpha",
    ),
    "a field of a number": (
        {"entries": [{"name": "a", "steps.all": 3}]},
        r"config\.stages\[0\] has 'steps\.all'; there is no field config\.steps\.all",
    ),
    "a list in a list": (
        {"entries": [{"name": "a", "rounds": 3}]},
        r"config\.stages\[0\] has 'rounds'; there is no field config\.rounds",
    ),
    "text for a number": (
        {"entries": [RL, named("a", steps="many")]},
        r"config\.stages\[1\] has 'steps'; .* many is of original type <class 'str'>",
    ),
    "a value out of range": (
        {"entries": [{"name": "a", "objective.alpha": -1.0}]},
        r"objective\.alpha is -1\.0; set a finite value >= 0",
    ),
    "a start that comes later": (
        {"entries": [named("a", "b"), named("b")], "rounds": 2},
        r"config\.stages\[0\]\.start is 'b'; set 'previous', 'base' or the name of a stage before",
    ),
    "a start of nowhere": (
        {"entries": [named("a"), named("b", "stage1")]},
        r"config\.stages\[1\]\.start is 'stage1'; set 'previous', 'base' or the name",
    ),
    "itself": (
        {"entries": [named("a"), named("b", "b")]},
        r"config\.stages\[1\]\.start is 'b'; set 'previous', 'base' or the name",
    ),
    "one that trains nothing": (
        {"entries": [COLLECT, named("a", "collect")]},
        r"config\.stages\[1\]\.start is 'collect'; set 'previous', .* a stage before it",
    ),
}
FILE = """
from tests.tiny_stages import get_config as tiny

def get_config():
    config = tiny()
    config.stages, config.rounds = {entries!r}, {rounds}
    return config
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Exit code and stderr of a command for each wrong list."""
    folder, cases = tmp_path_factory.mktemp("refused"), []
    for number, (given, _) in enumerate(WRONG.values()):
        path = folder / f"method_{number}.py"
        path.write_text(FILE.format(**{"rounds": 1} | given | {"entries": tuple(given["entries"])}))
        cases.append([f"--config={path}", f"--workdir={folder / 'run'}"])
    told = refuse(cases)
    assert not (folder / "run").exists()
    return dict(zip(WRONG, told, strict=True))


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_list_is_refused_in_one_line_that_names_the_entry(refusals, case):
    code, err = refusals[case]
    assert code == 2, err
    assert len(err.splitlines()) == 1 and err.startswith("error: ")
    assert re.search(WRONG[case][1], err), err
