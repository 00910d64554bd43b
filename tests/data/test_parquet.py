"""Parquet files of the schemas that hubs serve, read lazily, by split, subset and columns."""

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet as files

from score_jax.data import parquet, sources
from score_jax.stages import identity
from score_jax.tasks import registry

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"question": f"{n} + 1?", "answer": f"It is\n#### {n + 1}"} for n in range(7)]


def save(path, rows, *, group=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


@pytest.fixture
def gsm8k(tmp_path):
    """As openai/gsm8k: two subsets, each with a train and a test split, one of them in shards."""
    root = tmp_path / "gsm8k"
    save(root / "main/train-00000-of-00002.parquet", ROWS[:4])
    save(root / "main/train-00001-of-00002.parquet", ROWS[4:])
    save(root / "main/test-00000-of-00001.parquet", ROWS[:2])
    save(root / "socratic/train-00000-of-00001.parquet", ROWS[:1])
    return root


def load(path, source="parquet", **fields):
    return sources.load(source=source, path=str(path), **fields)


def test_shards_follow_each_other_and_a_row_is_found_at_random(gsm8k):
    problems = load(gsm8k, name="gsm8k", subset="main")
    assert [p.prompt for p in problems] == [row["question"] for row in ROWS]
    assert [p.answer for p in problems] == [str(n + 1) for n in range(7)]
    assert problems[5] == list(problems)[5] and problems[-1].prompt == "6 + 1?"
    assert [p.id for p in problems[:2]] == ["gsm8k/train/0", "gsm8k/train/1"]


def test_only_the_row_groups_that_are_asked_for_are_read(gsm8k, monkeypatch):
    read = []
    original = parquet.Table.read_group
    monkeypatch.setattr(
        parquet.Table, "read_group", lambda self, place: read.append(place) or original(self, place)
    )
    problems = load(gsm8k, name="gsm8k", subset="main")
    assert problems[6].prompt == "6 + 1?" and read == [2]
    assert problems[3].prompt == "3 + 1?" and problems[4].prompt == "4 + 1?" and read == [2, 1]


def test_columns_are_mapped_by_fields_and_told_by_file_and_row(gsm8k):
    fields = {"prompt": "question"}
    problems = load(gsm8k, split="test", subset="main", fields=fields, task="math")
    assert problems[1].location == "main/test-00000-of-00001.parquet:2"
    assert problems[1].id == problems[1].location and problems[1].task == "math"
    assert problems[1].answer == ROWS[1]["answer"]
    frozen = tuple(fields.items())  # as settings keep them
    again = load(gsm8k, split="test", subset="main", fields=frozen, task="math")
    assert list(again) == list(problems)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"split": "dev", "subset": "main"},
            r"split is 'dev', data.subset 'main'; .* has main/test, main/train, soc",
        ),
        (
            {"split": "test", "subset": "other"},
            r"data.subset 'other'; .* has main/test, main/train, soc",
        ),
        ({}, r"data.subset is ''; .* has 'train' of main, socratic"),
        ({"split": "test"}, r"fields.prompt is 'prompt', .* lacks; it has answer, question"),
        ({"split": "test", "fields": {"prompt": "question", "options": "choices"}}, "'choices'"),
        ({"split": "test", "name": "gsm8k", "fields": {"prompt": "question"}}, "remove fields"),
        (
            {"split": "test", "name": "mbpp"},
            r"-of-00001.parquet:1 is no row of 'mbpp' \(KeyError\('test_list'",
        ),
        ({"split": "test", "name": "aime"}, r"data.name is 'aime'; choose one of math, gsm8k"),
    ],
)
def test_what_can_not_be_found_is_named(gsm8k, fields, message):
    with pytest.raises(ValueError, match=message):
        list(load(gsm8k, **fields))


@pytest.mark.parametrize(
    ("names", "split", "subset", "chosen"),
    [
        (["data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"], "train", "", [0]),
        (["train.parquet", "test.parquet"], "test", "", [1]),
        (["default/train/0000.parquet", "default/train/0001.parquet"], "train", "", [0, 1]),
        (["data/train_prefs-00000-of-00001.parquet", "data/train-00.parquet"], "train", "", [1]),
        (["law/dev-0.parquet", "law/validation-0.parquet"], "validation", "law", [1]),
        (["law/dev-0.parquet"], "validation", "", [0]),
        (["test/train-0.parquet", "test/test-0.parquet"], "test", "test", [1]),
        (["train/main/0000.parquet", "train/other/0000.parquet"], "train", "main", [0]),
    ],
)
def test_a_split_is_found_in_the_layouts_of_hubs(tmp_path, names, split, subset, chosen):
    for number, name in enumerate(names):
        save(tmp_path / name, [{"prompt": f"p{number}", "answer": "a"}])
    found = load(tmp_path, split=split, subset=subset)
    assert [p.prompt for p in found] == [f"p{n}" for n in chosen]


def test_a_missing_shard_and_empty_groups(tmp_path):
    save(tmp_path / "train-00000-of-00002.parquet", [{"prompt": "p", "answer": "a"}])
    with pytest.raises(ValueError, match="is one of 2 parts, but 1 are there"):
        load(tmp_path)
    none = pyarrow.table(
        {"prompt": pyarrow.array([], "string"), "answer": pyarrow.array([], "string")}
    )
    files.write_table(none, tmp_path / "train-00001-of-00002.parquet")
    assert [p.prompt for p in load(tmp_path)] == ["p"]


def test_one_file_is_one_split(tmp_path):
    save(tmp_path / "rows.parquet", [{"prompt": "2 + 2", "answer": "4"}])
    with pytest.raises(ValueError, match=r"split is 'test', but data\.path is one file"):
        load(tmp_path / "rows.parquet", split="test")
    save(tmp_path / "test.parquet", [{"prompt": "2 + 2", "answer": "4"}])
    assert len(load(tmp_path / "test.parquet", split="test")) == 1


def test_a_row_without_a_text_is_named(tmp_path):
    path = save(tmp_path / "r.parquet", [{"question": "q", "answer": None}])
    with pytest.raises(ValueError, match=r"r.parquet:1 is no row of 'gsm8k' \(AttributeError"):
        list(load(path, name="gsm8k"))


def test_values_of_a_single_file(tmp_path):
    path = save(
        tmp_path / "rows.parquet", [{"prompt": "2 + 2", "answer": 4, "id": 9, "other": "x"}]
    )
    (problem,) = load(path, task="math")
    assert (problem.id, problem.answer, problem.task) == ("9", "4", "math")


def test_an_id_that_occurs_twice_is_named_with_both_rows(tmp_path):
    rows = [{"id": n % 4, "prompt": "p", "answer": "a"} for n in range(5)]
    with pytest.raises(ValueError, match=r"rows.parquet:5 has the id '0', as rows.parquet:1"):
        load(save(tmp_path / "rows.parquet", rows))


def test_a_file_that_is_none_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"train.parquet is no complete Parquet file"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"data.path is .*none', which holds no .parquet files"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"data.path is '' of data.source 'parquet'; name a file"):
        load("")


PUBLISHED = {  # a row of each set, in the columns that its hub serves, and the problem it makes
    "math": (
        {"problem": "1+1?", "solution": r"It is $\boxed{2}$.", "level": "Level 1"},
        {"name": "math"},
        ("1+1?", "2", "math"),
    ),
    "mbpp": (
        {
            "task_id": 11, "text": "Add one.", "code": "def f(x):\r\n  return x + 1",
            "test_list": ["assert f(1) == 2"], "test_setup_code": "", "challenge_test_list": [],
        },
        {"name": "mbpp"},
        ("Add one.", "def f(x):\n  return x + 1", "code"),
    ),
    "humaneval": (
        {
            "task_id": "HumanEval/0", "prompt": "def f(x):\n", "canonical_solution": "  return x\n",
            "test": "def check(g):\n  assert g(1) == 1", "entry_point": "f",
        },
        {"name": "humaneval"},
        ("def f(x):\n", "def f(x):\n  return x\n", "humaneval"),
    ),
    "big math": (
        {"problem": "1+1?", "answer": "2", "source": "orca", "llama8b_solve_rate": 0.5},
        {"fields": {"prompt": "problem"}, "task": "math"},
        ("1+1?", "2", "math"),
    ),
    "mmlu": (
        {"question": "Which?", "subject": "law", "choices": ["one", "two", "three"], "answer": 1},
        {"fields": {"prompt": "question", "options": "choices"}, "task": "choice"},
        ("Which?\n\nA. one\nB. two\nC. three", "B", "choice"),
    ),
    "medqa": (
        {
            "question": "Which?", "answer": "two", "meta_info": "step1", "answer_idx": "B",
            "options": {"A": "one", "B": "two"},
        },
        {
            "fields": {"prompt": "question", "options": "options", "answer": "answer_idx"},
            "task": "choice",
        },
        ("Which?\n\nA. one\nB. two", "B", "choice"),
    ),
    "arc": (
        {
            "id": "Mercury_1", "question": "Which?", "answerKey": "2",
            "choices": {"text": ["one", "two"], "label": ["1", "2"]},
        },
        {
            "fields": {"prompt": "question", "options": "choices", "answer": "answerKey"},
            "task": "choice",
        },
        ("Which?\n\nA. one\nB. two", "B", "choice"),
    ),
    "finance": (
        {"question": "Net margin?", "gold": "12.5%", "context": "..."},
        {"fields": {"prompt": "question", "answer": "gold"}, "task": "numeric"},
        ("Net margin?", "12.5%", "numeric"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_schemas_become_problems_that_their_graders_accept(kind, tmp_path):
    row, fields, (prompt, answer, task) = PUBLISHED[kind]
    save(tmp_path / "data/train-00000-of-00001.parquet", [row])
    (problem,) = load(tmp_path, **fields)
    assert (problem.prompt, problem.answer, problem.task) == (prompt, answer, task)
    own = registry.get(task)
    gold = own.gold_response(problem) if own.gold_response else problem.answer
    assert own.grade(problem, gold).verdict == "correct"


def test_a_hubs_data_set_is_fetched_by_split_and_its_commit_is_told(gsm8k, monkeypatch, tmp_path):
    client = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "snapshots" / COMMIT
    folder.parent.mkdir()
    Path(gsm8k).rename(folder)
    asked = []

    def fetch(name, *, allow_patterns, repo_type, revision=None):
        asked.append((name, repo_type, revision, tuple(allow_patterns)))
        return str(folder)

    monkeypatch.setattr(client, "snapshot_download", fetch)
    path = "hub:openai/gsm8k@main"
    problems = load(path, "hub", name="gsm8k", subset="main", split="test")
    assert [p.prompt for p in problems] == ["0 + 1?", "1 + 1?"]
    wanted = tuple(
        f"*{order}*.parquet" for order in ("main*test", "test*main", "main*eval", "eval*main")
    )
    assert asked == [("openai/gsm8k", "dataset", "main", wanted)]
    data = {"source": "hub", "path": path, "split": "test", "subset": "main"}
    pinned = f"hub:openai/gsm8k@{COMMIT}"
    assert identity.data_source(data) == pinned and len(asked) == 1
    mixed = {"source": "mixture", "parts": (data, {"source": "words", "count": 5})}
    assert identity.data_source(mixed) == f"mixture of {pinned}, words"
    assert identity.data_source({"source": "parquet", "path": "r.parquet"}) == "r.parquet"


def test_a_hubs_name_and_a_path_are_not_mistaken_for_each_other(gsm8k):
    with pytest.raises(ValueError, match=r"of data.source 'hub'; write hub:org/name@revision"):
        load(gsm8k, "hub")
    with pytest.raises(ValueError, match=r"of data.source 'parquet'; .* set data.source to 'hub'"):
        load("hub:a/b")
