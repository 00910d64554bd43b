"""The store of rollouts: every dialogue that a stage drew, as token ids, in Arrow files.

A folder holds a file per step and host, `step-00000012.host-003.arrow`, which appears under this
name when it is whole and on the disk, and never changes. So a run may be killed at any moment,
and read while it writes:

    from score_jax.data import store
    for dialogue in store.read("RUN/STAGE/rollouts"):
        print(dialogue.step, dialogue.problem, dialogue.verdicts, dialogue.logprobs.sum())

To other programs a file is a table with a row per dialogue and the columns of SCHEMA:
`pyarrow.ipc.open_file(path).read_pandas()`, or `pandas.read_feather(path)`.
"""

import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from score_jax.records import Grade, Problem, Transcript, Verdict

VERSION = "1"  # of SCHEMA and of what its columns mean
# Fields of types.Episodes with a value per token, and per turn; those of types.Ids: columns.
OF_TOKENS = dict.fromkeys(("tokens", "turn"), np.int32)
OF_TOKENS |= dict.fromkeys(("sampled", "trained"), np.bool_) | {"logprobs": np.float32}
OF_TURNS = {"present": np.bool_, "truncated": np.bool_, "rewards": np.float32}
OF_IDS = {"problem": "problem_index"}
OF_IDS |= {name: name for name in ("draw", "sample", "attempt", "policy_step")}
SCHEMA = pa.schema(
    dict.fromkeys(("stage", "problem", "task", "prompt", "answer"), pa.string())
    | dict.fromkeys(("step", "row", *OF_IDS.values()), pa.int64())
    | {name: pa.list_(pa.from_numpy_dtype(kind)) for name, kind in (OF_TOKENS | OF_TURNS).items()}
    | dict.fromkeys(("attempts", "verdicts", "extracted", "details"), pa.list_(pa.string()))
)
STEM = re.compile(r"step-(\d+)\.host-\d+")
Folder = str | Path
Log = Callable[[str], None] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredDialogue:
    """A row of the store. Arrays [T] have a value per token of the dialogue, [R] per turn."""

    stage: str
    step: int  # updates before it was sampled
    row: int  # its number in the batch of all hosts
    problem: str  # Problem.id
    task: str  # that asked and graded it
    prompt: str
    answer: str
    problem_index: int  # this and the next four: types.Ids
    draw: int
    sample: int
    attempt: int
    policy_step: int
    tokens: np.ndarray  # int32 [T]
    turn: np.ndarray  # int32 [T], 1..R: the turn that the token belongs to; 0: nobody's
    sampled: np.ndarray  # bool [T], the policy drew it
    trained: np.ndarray  # bool [T], it carries loss
    logprobs: np.ndarray  # float32 [T], nats; 0 where not sampled
    present: np.ndarray  # bool [R], the dialogue has this turn
    truncated: np.ndarray  # bool [R], the turn was cut at its length limit
    rewards: np.ndarray  # float32 [R], 0..1
    attempts: tuple[str, ...]  # R texts
    verdicts: tuple[Verdict | None, ...]  # R values, as below; None: the dialogue lacks the turn
    extracted: tuple[str | None, ...]  # None also where no final answer was found
    details: tuple[str | None, ...]


def write(
    folder: Folder, dialogues: Iterable[StoredDialogue], *, step: int, host: int = 0, mark: str = ""
) -> Path:
    """Writes a host's dialogues of a step; `mark` says which policy drew them (a checksum, say)."""
    ordered = sorted(dialogues, key=lambda one: one.row)
    assert all(one.step == step for one in ordered), f"not all dialogues are of step {step}"
    columns = [pa.array([_utf8(getattr(one, c.name)) for one in ordered], c.type) for c in SCHEMA]
    schema = SCHEMA.with_metadata({"version": VERSION, "step": str(step), "mark": mark})
    path = Path(folder) / f"step-{step:08d}.host-{host:03d}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with partial.open("wb") as file:
        with pa.ipc.new_file(file, schema, options=options) as writer:
            writer.write_table(pa.table(columns, schema=schema))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    names = os.open(path.parent, os.O_RDONLY)  # the rename is on the disk when the folder is
    os.fsync(names)
    os.close(names)
    return path


def _utf8(value: Any) -> Any:
    """Text as bytes; half of a surrogate pair, as in a program's error message, is escaped."""
    if isinstance(value, tuple):
        return [_utf8(each) for each in value]
    return value.encode("utf-8", "backslashreplace") if isinstance(value, str) else value


def steps(folder: Folder) -> list[int]:
    """The steps that the folder holds, in order; none if there is no folder."""
    return list(_files(folder))


def _files(folder: Folder, ending: str = ".arrow") -> dict[int, list[Path]]:
    """Files by step, in the order of steps and hosts, since numbers in names are padded."""
    files: dict[int, list[Path]] = {}
    for path in sorted(Path(folder).glob(f"step-*{ending}")):
        if name := STEM.fullmatch(path.stem):
            files.setdefault(int(name[1]), []).append(path)
    return files


def read(
    folder: Folder, *, steps: Container[int] | None = None, log: Log = None
) -> Iterator[StoredDialogue]:
    """Yields dialogues in the order of step and row; of a row that several hosts hold, one.

    A file that can't be read is a ValueError; with a `log`, a message to it, and is skipped.
    """
    for step, paths in _files(folder).items():
        if steps is None or step in steps:
            yield from _merge(_load(path, log) for path in paths)


def read_step(folder: Folder, step: int, mark: str | None = None) -> list[StoredDialogue] | None:
    """The dialogues of a step by row, without those of a host that was killed.

    Returns None if there is no file of the step, or one with another mark than that given.
    """
    files = [_load(path) for path in _files(folder).get(step, [])]
    if not files or (mark is not None and any(found != mark for found, _ in files)):
        return None
    return _merge(files)


def _merge(files: Iterable[tuple[str, list[StoredDialogue]]]) -> list[StoredDialogue]:
    by_row: dict[int, StoredDialogue] = {}
    for _, dialogues in files:
        by_row = {one.row: one for one in dialogues} | by_row
    return [by_row[row] for row in sorted(by_row)]


def _load(path: Path, log: Log = None) -> tuple[str, list[StoredDialogue]]:
    """The mark and the dialogues of a file."""
    try:
        with pa.ipc.open_file(path.read_bytes()) as reader:
            metadata = (reader.schema.metadata or {}).items()
            found = {key: value.decode("utf-8", "replace") for key, value in metadata}
            version = found.get(b"version")
            if version == VERSION and reader.schema.equals(SCHEMA):
                (table := reader.read_all()).validate(full=True)
                return found.get(b"mark", ""), _dialogues(table)
            problem = (
                f"has format {version} ({len(reader.schema)} columns), this score_jax reads format "
                f"{VERSION} ({len(SCHEMA)}); read it with the one that wrote it, or move it away"
            )
    except FileNotFoundError:  # a resumed run dropped it after it was listed
        return "", []
    except (pa.ArrowException, OSError) as error:
        problem = f"is damaged ({error}); move it away to read the other files"
    if log is None:
        raise ValueError(f"{path} {problem}")
    log(f"skipped: {path} {problem}")
    return "", []


def _dialogues(table: pa.Table) -> list[StoredDialogue]:
    # Arrays are copied: a dialogue that is kept would else keep those of its whole file.
    columns = [
        [values.copy() for values in table[name].to_numpy()]
        if name in OF_TOKENS or name in OF_TURNS
        else [tuple(v) if isinstance(v, list) else v for v in table[name].to_pylist()]
        for name in SCHEMA.names
    ]
    rows = zip(*columns, strict=True)
    return [StoredDialogue(**dict(zip(SCHEMA.names, row, strict=True))) for row in rows]


def drop_from(folder: Folder, step: int) -> None:
    """Deletes the files of this and later steps, which a resumed run draws again."""
    for ending in (".partial", ".arrow"):
        for found, paths in reversed(_files(folder, ending).items()):  # the rest has no gap
            for path in paths if found >= step else ():
                path.unlink(missing_ok=True)  # another host may have been faster


def size_bytes(folder: Folder) -> int:
    """Bytes that the folder's files take."""
    return sum(path.stat().st_size for paths in _files(folder).values() for path in paths)


def from_rows(
    episodes: Any,
    *,
    stage: str,
    step: int,
    rows: Sequence[int],
    problems: Sequence[Problem],
    tasks: Sequence[str],
    prompts: Sequence[str],
    attempts: Sequence[Sequence[str]],
    grades: Sequence[Sequence[Grade | None]],
) -> list[StoredDialogue]:
    """The dialogues of a batch, without the rows that pad it.

    `episodes` has the fields of types.Episodes as numpy arrays. The sequences follow its rows;
    `rows` numbers these in the batch of all hosts. Turns that a dialogue lacks have no grade.
    """
    texts = zip(rows, problems, tasks, prompts, attempts, grades, strict=True)
    return [
        StoredDialogue(
            stage=stage,
            step=step,
            row=int(row),
            problem=problem.id,
            task=task,
            prompt=prompt,
            answer=problem.answer,
            attempts=tuple(replies),
            verdicts=tuple(grade and grade.verdict for grade in given),
            extracted=tuple(grade and grade.extracted for grade in given),
            details=tuple(grade and grade.detail for grade in given),
            **_arrays(episodes, index),
        )
        for index, (row, problem, task, prompt, replies, given) in enumerate(texts)
        if episodes.present[index].any()
    ]


def _arrays(episodes: Any, index: int) -> dict[str, Any]:
    ids = {column: int(getattr(episodes.ids, name)[index]) for name, column in OF_IDS.items()}
    return ids | {
        name: np.array(getattr(episodes, name)[index, :stop], kind)
        for kinds, stop in ((OF_TOKENS, episodes.length[index]), (OF_TURNS, None))
        for name, kind in kinds.items()
    }


def padded(dialogues: Sequence[StoredDialogue], length: int, turns: int) -> dict[str, Any]:
    """The fields of Episodes as numpy arrays, padded with 0; a ValueError if a row is longer."""
    arrays = {name: np.zeros((len(dialogues), length), kind) for name, kind in OF_TOKENS.items()}
    arrays |= {name: np.zeros((len(dialogues), turns), kind) for name, kind in OF_TURNS.items()}
    for index, one in enumerate(dialogues):
        if len(one.tokens) > length or len(one.present) > turns:
            raise ValueError(
                f"problem {one.problem!r} (step {one.step}, row {one.row}) has {len(one.tokens)} "
                f"tokens in {len(one.present)} turns; the limit is {length} tokens in {turns} "
                "turns: raise it, or leave the dialogue out"
            )
        for name, array in arrays.items():
            values = getattr(one, name)
            array[index, : len(values)] = values
    ids = {k: np.array([getattr(one, c) for one in dialogues], np.int32) for k, c in OF_IDS.items()}
    lengths = np.array([len(one.tokens) for one in dialogues], np.int32)
    return arrays | {"length": lengths, "ids": ids}


def transcript(dialogue: StoredDialogue) -> Transcript:
    """The dialogue as it is displayed: texts and verdicts, of the turns that it has."""
    values: dict[str, Any] = vars(dialogue) | {
        "lengths": np.bincount(dialogue.turn, minlength=len(dialogue.present) + 1)[1:].tolist(),
        "rewards": dialogue.rewards.tolist(),
        "truncated": dialogue.truncated.tolist(),
    }
    per_turn = ("attempts", "verdicts", "rewards", "lengths", "truncated", "extracted")
    same = {name: values[name] for name in ("step", "problem", "task", "prompt", "answer")}
    same |= {name: tuple(compress(values[name], dialogue.present)) for name in per_turn}
    return Transcript(**same)


def _ends(dialogue: StoredDialogue) -> tuple[bool | None, bool]:
    """Whether the first answer is right (None: it is the only one), and whether the last is."""
    rights = (dialogue.rewards[dialogue.present] == 1).tolist()
    return (rights[0] if len(rights) > 1 else None), rights[-1]


# Which dialogues to learn from. Source: arXiv:2409.12917, section 4: STaR learns from
# wrong_then_right, its variant D+ from right_then_right as well, which is ends_right.
FILTERS: dict[str, Callable[[StoredDialogue], bool]] = {
    "all": lambda one: True,
    "wrong_then_right": lambda one: _ends(one) == (False, True),
    "right_then_right": lambda one: _ends(one) == (True, True),
    "ends_right": lambda one: _ends(one)[1],
}


def keep(dialogues: Iterable[StoredDialogue], name: str) -> Iterator[StoredDialogue]:
    """The dialogues that the filter of this name lets through; a ValueError if there is none."""
    if name not in FILTERS:
        raise ValueError(f"examples.keep is {name!r}; set one of {', '.join(FILTERS)}")
    return filter(FILTERS[name], dialogues)
