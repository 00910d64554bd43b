"""Reads the files that a finished or a running run wrote to its workdir.

A workdir holds run.json (the chain of stages) and one folder per stage. In a running run
files may be absent and the last line of a log incomplete, so whatever is absent or
unreadable becomes a line in `Run.missing` instead of an error.
"""

import json
import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from score_jax.checks import check_recorded_names
from score_jax.data import store
from score_jax.records import Transcript

READ_STEPS, READ_ROWS = 3, 8  # training dialogues read per stage: of the latest steps, each
PURPOSE = {
    "metrics.jsonl": "no curves",
    "evaluation.json": "no held-out measurements",
    "config.json": "no config",
}


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """What one stage's folder holds."""

    name: str
    rows: tuple[dict[str, float], ...] = ()  # by step; NaN where the run logged NaN
    transcripts: tuple[Transcript, ...] = ()  # the latest ones, oldest first
    evaluation: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)  # evaluation_NAME.json, by name
    config: dict[str, Any] = field(default_factory=dict)
    handoff: dict[str, Any] = field(default_factory=dict)
    alarms: tuple[dict[str, Any], ...] = ()  # raised and cleared in training, report.alarms.Event
    units: dict[str, str] = field(default_factory=dict)  # of metrics, by name without turn

    def column(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric, where the run logged it."""
        pairs = [(row["step"], row[key]) for row in self.rows if key in row]
        return [step for step, _ in pairs], [value for _, value in pairs]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A chain of stages in the order in which they trained."""

    stages: tuple[StageRecord, ...]
    chain: dict[str, Any]  # run.json: command, config, versions, commit
    missing: tuple[str, ...]  # one message per file that is absent or unreadable
    written: float  # modification time of the newest file, seconds since 1970

    @property
    def evaluated(self) -> StageRecord | None:
        """The last stage that was evaluated."""
        return next((stage for stage in reversed(self.stages) if stage.evaluation), None)


def read_run(workdir: Path) -> Run:
    """Reads a workdir.

    Raises:
      ValueError: it holds no stage with metrics or an evaluation, or one of an earlier version.
    """
    missing: list[str] = []
    chain = _read_object(workdir / "run.json", missing) if workdir.is_dir() else {}
    names = [str(name) for name in chain.get("stages", [])] or _find_stages(workdir)
    stages = tuple(_read_stage(workdir / name, missing) for name in names)
    if not any(stage.rows or stage.evaluation for stage in stages):
        raise ValueError(
            f"workdir is {workdir}; no stage in it has metrics.jsonl or evaluation.json yet: "
            "train first, or give the --workdir of a run"
        )
    if not chain:
        missing.append("run.json is missing: no command and versions; stages are ordered by age")
    files = [path for name in names for path in (workdir / name).glob("*.json*")]
    files = [path for path in files if path.suffix != ".partial"]  # gone at any moment
    return Run(
        stages=stages,
        chain=chain,
        missing=tuple(missing),
        written=max(path.stat().st_mtime for path in files),
    )


def _find_stages(workdir: Path) -> list[str]:
    ages = {}
    for name in ("evaluation.json", "metrics.jsonl"):  # the second replaces the first
        ages |= {path.parent.name: path.stat().st_mtime for path in workdir.glob(f"*/{name}")}
    return sorted(ages, key=lambda name: ages[name])


def _read_stage(folder: Path, missing: list[str]) -> StageRecord:
    name = folder.name
    if not folder.is_dir():
        missing.append(f"{name} has not started")
        return StageRecord(name=name)
    for file, purpose in PURPOSE.items():
        if not (folder / file).is_file():
            missing.append(f"{name}/{file} is missing: {purpose}")
    lines = _read_lines(folder / "metrics.jsonl", missing)
    rows = {row["step"]: row for row in map(_numbers, lines) if "step" in row}
    config = _read_object(folder / "config.json", missing)
    check_recorded_names(config, folder / "config.json")
    return StageRecord(
        name=name,
        rows=tuple(rows[step] for step in sorted(rows)),
        transcripts=_read_dialogues(folder, missing),
        evaluation=_read_object(folder / "evaluation.json", missing),
        sets={
            path.stem.removeprefix("evaluation_"): _read_object(path, missing)
            for path in sorted(folder.glob("evaluation_*.json"))
        },
        config=config,
        handoff=_read_object(folder / "handoff.json", missing),
        alarms=tuple(_read_lines(folder / "alarms.jsonl", missing)),
        units=_read_object(folder / "units.json", missing),
    )


def _read_dialogues(folder: Path, missing: list[str]) -> tuple[Transcript, ...]:
    """Dialogues of the latest steps that were kept, evenly spread over each step's rows."""
    rollouts = folder / "rollouts"
    steps = store.steps(rollouts)[-READ_STEPS:]
    if not steps:
        missing.append(f"{folder.name}/rollouts is missing: no training dialogues")
    found: list[Transcript] = []
    for step in steps:
        rows = list(store.read(rollouts, steps=[step], log=missing.append))
        count = min(READ_ROWS, len(rows))
        found += [store.transcript(rows[i * len(rows) // count]) for i in range(count)]
    return tuple(found)


def transcript_of(line: dict[str, Any]) -> Transcript | None:
    """Reads a stored transcript; None if a field is missing that has no default.

    Unknown fields are ignored.
    """
    required = [f.name for f in fields(Transcript) if f.default is MISSING]
    if not all(name in line for name in required):
        return None
    names = [f.name for f in fields(Transcript) if f.name in line]
    values = {k: tuple(line[k]) if isinstance(line[k], list) else line[k] for k in names}
    return Transcript(**cast(dict[str, Any], values))


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    row = {key: float(value) for key, value in line.items() if is_number(value)}
    return row if math.isfinite(row.get("step", math.nan)) else {}


def _read_object(path: Path, missing: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        missing.append(f"{path.parent.name}/{path.name} cannot be read: {error}")
        return {}
    return value if isinstance(value, dict) else {}


def _read_lines(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    objects, broken = [], 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                objects.append(value)
            else:
                broken += 1
    if broken:
        missing.append(f"{path.parent.name}/{path.name} has {broken} unreadable line(s), left out")
    return objects
