"""Reads problems from Parquet files, as hubs serve data sets, a row group at a time."""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow
from pyarrow import parquet as arrow

from score_jax.data import jsonl, rows
from score_jax.data.lazy import Lazy
from score_jax.records import Problem
from score_jax.text import hub

END = ".parquet"
FIELD = "data.path"
SHARD = re.compile(r"[-_]\d+(?:-of-(?P<count>\d+))?(?:-[0-9a-f]{8,})?$")  # train-00000-of-00002
ALIASES = {"validation": ("valid", "val", "dev"), "test": ("eval",), "train": ("training",)}
LISTED = 12  # names in an error message


def problems(
    path: str,
    *,
    split: str = "train",
    subset: str = "",
    fields: Mapping[str, str] = MappingProxyType({}),
    task: str = "",
    name: str = "",
) -> Lazy:
    """Opens a data set.

    Args:
      path: a Parquet file, a folder of them, or hub:org/name@revision.
      split: of a folder's files those that are named so, by file or folder.
      subset: of several in a folder, the folder inside it that names one.
      fields: the columns of `jsonl.FIELDS` where they differ: {"prompt": "question"}.
      task: of rows without a task.
      name: a published format instead of `fields`: one of data.rows.MAKERS.

    Raises:
      ValueError: there is no such file, split, subset or column, a file is damaged, or an id
        occurs twice.
    """
    if name and name not in rows.MAKERS:
        raise ValueError(f"data.name is {name!r}; choose one of {', '.join(rows.MAKERS)}, or ''")
    if name and fields:
        raise ValueError(f"data.name is {name!r}, a format with columns of its own; remove fields")
    root, files = find(path, split=split, subset=subset)
    columns = {} if name else {field: fields.get(field, field) for field in jsonl.FIELDS}
    table = Table(files, set(columns.values()))
    if not name:
        check_columns(table, {"prompt": columns["prompt"], **fields})
        check_ids(table, columns["id"])

    def read(index: int) -> Problem:
        file, row, values = table[index]
        location = f"{file.relative_to(root).as_posix()}:{row + 1}"
        if not name:
            return jsonl.problem(location, values, fields=fields, task=task)
        try:
            made = rows.MAKERS[name](values, f"{name}/{split}/{index}")
        except (KeyError, AttributeError, TypeError) as error:  # a column is absent, or has no text
            raise ValueError(
                f"{location} is no row of {name!r} ({error!r}); it has {', '.join(sorted(values))}"
            ) from error
        return replace(made, task=task) if task else made

    return Lazy(len(table), read)


def checked(path: str, source: str) -> str:
    """The path, if it is of the source's kind.

    Raises:
      ValueError: it is empty, or a hub's where a folder is expected, or the other way round.
    """
    if source == "hub" and not hub.is_hub(path):
        raise ValueError(
            f"{FIELD} is {path!r} of data.source 'hub'; write {hub.PREFIX}org/name@revision, or "
            "set data.source to 'parquet'"
        )
    if source == "parquet" and (not path or hub.is_hub(path)):
        raise ValueError(
            f"{FIELD} is {path!r} of data.source 'parquet'; name a file or folder, or set "
            "data.source to 'hub'"
        )
    return path


class Table:
    """The rows of several Parquet files, one after another.

    A row group is decoded when its first row is asked for, and kept: problems are read in any
    order, and all of them once at least.
    """

    def __init__(self, files: Sequence[Path], wanted: set[str]):
        """Reads the files' footers.

        Args:
          wanted: columns that are read where a file has them; none: all.

        Raises:
          ValueError: a file is no Parquet file.
        """
        self.files = files
        footers = [read_footer(file) for file in files]
        self.schemas = [footer.schema.to_arrow_schema().names for footer in footers]
        self.wanted = [[c for c in names if not wanted or c in wanted] for names in self.schemas]
        self.groups: list[tuple[int, int, int]] = []  # file, group, its first row in the file
        sizes: list[int] = []
        for number, footer in enumerate(footers):
            own = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            starts = [0, *accumulate(own)]
            self.groups += [(number, group, starts[group]) for group in range(len(own))]
            sizes += own
        self.ends = list(accumulate(sizes))
        self.read = cache(self.read_group)

    def __len__(self) -> int:
        """The number of rows."""
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> tuple[Path, int, dict[str, Any]]:
        """A row's file, its number in that file from 0, and its values by column."""
        place = bisect_right(self.ends, index)
        number, _, start = self.groups[place]
        group = self.read(place)
        within = index - (self.ends[place] - group.num_rows)
        (values,) = group.slice(within, 1).to_pylist()
        return self.files[number], start + within, values

    def read_group(self, place: int) -> Any:
        """The rows of a group, by its number among those of all files."""
        number, group, _ = self.groups[place]
        with arrow.ParquetFile(self.files[number]) as file:
            return file.read_row_group(group, columns=self.wanted[number])

    def column(self, name: str) -> list[Any]:
        """The values of one column of all files; None where a file lacks it."""
        found: list[Any] = []
        for path, names in zip(self.files, self.schemas, strict=True):
            with arrow.ParquetFile(path) as file:
                if name in names:
                    found += file.read(columns=[name]).column(name).to_pylist()
                else:
                    found += [None] * file.metadata.num_rows
        return found


def read_footer(path: Path) -> Any:
    """A Parquet file's metadata.

    Raises:
      ValueError: it has none.
    """
    try:
        return arrow.read_metadata(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no complete Parquet file: {error}") from error


def check_columns(table: Table, named: Mapping[str, str]) -> None:
    """Raises ValueError if a column that is named, by the field that takes it, is in no file."""
    has = sorted({name for names in table.schemas for name in names})
    for field, column in named.items():
        if field in jsonl.FIELDS and column not in has:
            raise ValueError(
                f"data.fields.{field} is {column!r}, which {table.files[0]} lacks; it has "
                f"{', '.join(has)}"
            )


def check_ids(table: Table, column: str) -> None:
    """Raises ValueError if two rows have one id."""
    first: dict[str, int] = {}
    for index, value in enumerate(table.column(column)):
        if value is not None and first.setdefault(str(value), index) != index:
            found = (table[first[str(value)]], table[index])
            before, after = (f"{file.name}:{row + 1}" for file, row, _ in found)
            raise ValueError(
                f"{after} has the id {str(value)!r}, as {before}; make ids unique, or name "
                "another column with data.fields.id"
            )


def find(path: str, *, split: str, subset: str) -> tuple[Path, list[Path]]:
    """The folder of a data set, and its files of one split, in the order of their names.

    A split's other names (`ALIASES`) count where nothing has its own.

    Raises:
      ValueError: there are none, they are of several subsets, or a part of them is missing.
    """
    names = (split, *ALIASES.get(split, ()))
    if hub.is_hub(path):
        root = hub.fetch(path, FIELD, wanted=patterns(names, subset), kind="dataset")
    else:
        root = Path(path).expanduser()
    if root.is_file():
        if split != "train" and not split_names(root, root.parent, "") & set(names):
            raise ValueError(
                f"data.split is {split!r}, but {FIELD} is one file, {path!r}; name the file of "
                "that split, or a folder"
            )
        return root.parent, [root]
    files = sorted(root.rglob(f"*{END}"))
    if not files:
        told = [name for name in hub.listing(path, kind="dataset") if name.endswith(END)]
        has = f"no {END} files" + (f" of {split!r}, but {', '.join(told[:LISTED])}" if told else "")
        raise ValueError(f"{FIELD} is {path!r}, which holds {has}")
    own = [f for f in files if not subset or subset in f.relative_to(root).parts[:-1]]
    by_name = ([f for f in own if name in split_names(f, root, subset)] for name in names)
    chosen = next((found for found in by_name if found), [])
    if not chosen:
        places = {(f.parent / SHARD.sub("", f.stem)).relative_to(root).as_posix() for f in files}
        raise ValueError(
            f"data.split is {split!r}{f', data.subset {subset!r}' if subset else ''}; {path} has "
            f"{', '.join(sorted(places)[:LISTED])}"
        )
    folders = sorted({f.relative_to(root).parent.as_posix() for f in chosen})
    if len(folders) > 1:
        raise ValueError(
            f"data.subset is {subset!r}; {path} has {split!r} of {', '.join(folders[:LISTED])}"
        )
    check_shards(chosen)
    return root, chosen


def patterns(names: Sequence[str], subset: str) -> tuple[str, ...]:
    """Which of a repository's files a split needs; more than those may match."""
    if not subset:
        return tuple(f"*{name}*{END}" for name in names)
    orders = ("*{subset}*{name}*", "*{name}*{subset}*")
    return tuple(o.format(subset=subset, name=name) + END for name in names for o in orders)


def split_names(file: Path, root: Path, subset: str) -> set[str]:
    """What a file's path may call its split: its name without shard and end, and its folders."""
    place = file.relative_to(root)
    return {SHARD.sub("", place.stem), *(part for part in place.parts[:-1] if part != subset)}


def check_shards(files: Sequence[Path]) -> None:
    """Raises ValueError if files say that they are parts of more than there are."""
    for file in files:
        found = SHARD.search(file.stem)
        if found and found["count"] and int(found["count"]) != len(files):
            raise ValueError(
                f"{file} is one of {int(found['count'])} parts, but {len(files)} are there; "
                "download all of them"
            )


def resolve(path: str, *, split: str = "train", subset: str = "") -> str:
    """Pins a hub's data set to the commit that was fetched; returns other paths unchanged."""
    if not hub.is_hub(path):
        return path
    return hub.pinned(path, find(path, split=split, subset=subset)[0], FIELD)
