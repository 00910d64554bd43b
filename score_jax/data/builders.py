"""TFDS builders that prepare MATH, GSM8K, MBPP and HumanEval offline from local files.

    python -m score_jax.data --prepare=math --files=train=a.jsonl,test=b.jsonl --path=/data

writes array_record folders (/data/score_math/1.1.0) that `data.source = "tfds"` reads
with random access. Every builder writes the same six fields of `Problem`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from score_jax.data import jsonl, rows

VERSION = "1.1.0"
MBPP_SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}
ALL = "all"  # the split name of MBPP's single file, which is split here by task id


class _Builder(tfds.core.GeneratorBasedBuilder):
    """Converts the rows of JSONL files to problems and writes them."""

    VERSION = tfds.core.Version(VERSION)
    source = ""  # key of rows.MAKERS

    def __init__(self, *, files: Mapping[str, str] | None = None, **options):
        """Args: files: a JSONL file for each split."""
        self.files = dict(files or {})
        super().__init__(**options)

    def _info(self):
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.source} problems for score_jax.",
            features=tfds.features.FeaturesDict(
                {
                    "id": text,
                    "prompt": text,
                    "answer": text,
                    "tests": tfds.features.Sequence(text),
                    "shown": tfds.features.Sequence(text),
                    "task": text,
                }
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        if self.source == "mbpp" and list(self.files) == [ALL]:
            return {
                split: self._generate_examples(self.files[ALL], ids)
                for split, ids in MBPP_SPLITS.items()
            }
        return {split: self._generate_examples(path) for split, path in self.files.items()}

    def _generate_examples(self, path: str, ids: tuple[int, int] | None = None) -> Iterator:
        for number, (location, row) in enumerate(jsonl.rows(path)):
            name = row.get("unique_id") or row.get("task_id") or number
            if ids and not ids[0] <= int(row["task_id"]) <= ids[1]:
                continue
            identifier = f"{self.source}/{Path(path).stem}/{name}"
            try:
                problem = rows.MAKERS[self.source](row, identifier)
            except (KeyError, ValueError) as error:
                raise ValueError(f"{location}: {error}") from error
            yield (
                identifier,
                {
                    "id": identifier,
                    "prompt": problem.prompt,
                    "answer": problem.answer,
                    "tests": list(problem.tests),
                    "shown": list(problem.shown),
                    "task": problem.task,
                },
            )


class ScoreMath(_Builder):
    """MATH: rows with problem and solution; Lightman's split is 12,000 train, 500 test."""

    source = "math"


class ScoreGsm8k(_Builder):
    """GSM8K: rows with question and answer."""

    source = "gsm8k"


class ScoreMbpp(_Builder):
    """MBPP: rows with text, code, test_list, task_id; one file named `all` is split by id."""

    source = "mbpp"


class ScoreHumaneval(_Builder):
    """HumanEval: rows with prompt, canonical_solution, test, entry_point."""

    source = "humaneval"


BUILDERS = {
    "math": ScoreMath,
    "gsm8k": ScoreGsm8k,
    "mbpp": ScoreMbpp,
    "humaneval": ScoreHumaneval,
}


def prepare(name: str, files: Mapping[str, str], path: str) -> str:
    """Writes a data set and returns its folder.

    Args:
      name: key of BUILDERS.
      files: a JSONL file for each split.
      path: folder in which the set is written.

    Raises:
      ValueError: the name is unknown, no file is given, or a line is invalid.
    """
    if name not in BUILDERS or not files:
        raise ValueError(
            f"--prepare is {name!r}, --files {dict(files)!r}; choose one of {', '.join(BUILDERS)} "
            "and name a file for each split: train=a.jsonl,test=b.jsonl"
        )
    for file in files.values():
        next(iter(jsonl.rows(file)), None)  # raises for a missing file before anything is written
    builder = BUILDERS[name](files=files, data_dir=path, file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)
