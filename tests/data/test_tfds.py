import json

import pytest
import tensorflow_datasets

from score_jax.data import builders, sources, tfds

ROWS = {
    "math": {"problem": "1/2?", "solution": r"It is $\boxed{\frac12}$.", "unique_id": "a/1.json"},
    "gsm8k": {"question": "2+2?", "answer": "so\n#### 4"},
    "mbpp": {
        "text": "Double.",
        "code": "def f(x): return 2*x",
        "test_list": ["assert f(1) == 2", "assert f(2) == 4"],
        "task_id": 11,
    },
    "humaneval": {
        "task_id": "HumanEval/0",
        "prompt": "def f():\n",
        "canonical_solution": "    return 1\n",
        "test": "def check(c):\n    assert c() == 1\n",
        "entry_point": "f",
    },
}
ANSWERS = {"math": r"\frac12", "gsm8k": "4", "mbpp": "def f(x): return 2*x"}


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("name", list(ROWS))
def test_what_a_builder_writes_is_read_back(tmp_path, name):
    file = write(tmp_path / "rows.jsonl", ROWS[name])
    folder = builders.prepare(name, {"train": file}, str(tmp_path / "out"))
    assert folder.endswith(f"score_{name}/{tfds.OWN_VERSION}")
    for settings in ({"path": folder}, {"path": str(tmp_path / "out"), "name": f"score_{name}"}):
        found = sources.load(source="tfds", split="train", **settings)
        assert len(found) == 1
        problem = found[0]
        assert problem.prompt and problem.task
        assert problem.answer == ANSWERS.get(name, "def f():\n    return 1\n")
        assert len(problem.tests) == {"mbpp": 2, "humaneval": 1}.get(name, 0)
        assert len(problem.shown) == {"mbpp": 2}.get(name, 0)
        assert found[-1] == problem and found[:5] == [problem]


def test_one_mbpp_file_is_split_by_task_id(tmp_path):
    rows = [ROWS["mbpp"] | {"task_id": n} for n in (1, 10, 11, 510, 511, 600, 601, 974)]
    path = builders.prepare("mbpp", {"all": write(tmp_path / "all.jsonl", *rows)}, str(tmp_path))
    for split in ("prompt", "test", "validation", "train"):
        assert len(sources.load(source="tfds", path=path, split=split)) == 2


def test_a_broken_row_is_named_with_its_line(tmp_path):
    bad = ROWS["math"] | {"solution": "none"}
    file = write(tmp_path / "bad.jsonl", ROWS["math"], bad)
    with pytest.raises(ValueError, match=r"bad.jsonl:2: .*no \\boxed"):
        builders.prepare("math", {"train": file}, str(tmp_path / "out"))
    with pytest.raises(ValueError, match="No such file"):
        builders.prepare("math", {"train": str(tmp_path / "absent")}, str(tmp_path / "out"))
    with pytest.raises(ValueError, match="choose one of math"):
        builders.prepare("sql", {"train": file}, str(tmp_path / "out"))


def change(folder, **fields):
    info = json.loads((folder / tfds.INFO).read_text())
    (folder / tfds.INFO).write_text(json.dumps(info | fields))


def test_a_folder_of_another_kind_is_refused(tmp_path):
    file = write(tmp_path / "rows.jsonl", ROWS["gsm8k"])
    builders.prepare("gsm8k", {"train": file}, str(tmp_path))
    folder = tmp_path / "score_gsm8k" / tfds.OWN_VERSION
    with pytest.raises(ValueError, match=r"data.split is 'test'; .* has train"):
        tfds.problems(path=str(folder), split="test")
    with pytest.raises(ValueError, match="it holds none"):
        tfds.problems(path=str(tmp_path / "empty"), split="train")
    for fields, message in (
        ({"version": "1.0.0"}, "is version 1.0.0 of score_gsm8k; this release reads 1.1.0"),
        ({"version": tfds.OWN_VERSION, "fileFormat": "tfrecord"}, "has the format tfrecord"),
        ({"name": "mnist"}, "holds 'mnist'"),
        ({"name": None}, "holds None"),
    ):
        change(folder, **fields)
        with pytest.raises(ValueError, match=message):
            tfds.problems(path=str(folder), split="train")
    (folder / tfds.INFO).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        tfds.problems(path=str(folder), split="train")


class Gsm8k(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Writes a folder as the catalogue's builder of this name does."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        text = tensorflow_datasets.features.Text()
        features = tensorflow_datasets.features.FeaturesDict(
            {"question": text, "answer": text, "annotation": text, "short_answer": text}
        )
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        row = {"annotation": "a", "short_answer": "4"}
        for n in range(3):
            yield n, row | {"question": f"{n}?", "answer": f"so\n#### {n}"}


def test_the_catalogues_gsm8k_is_read_from_its_prepared_folder(tmp_path):
    Gsm8k(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    found = sources.load(source="tfds", path=str(tmp_path), name="gsm8k", split="train")
    assert {(p.prompt, p.answer) for p in found} == {(f"{n}?", str(n)) for n in range(3)}
    assert found[0].task == "math" and found[2].id == "gsm8k/train/2"
    assert (
        len(sources.load(source="tfds", path=str(tmp_path), name="gsm8k", split="train[:2]")) == 2
    )
    with pytest.raises(IndexError):
        found[3]
