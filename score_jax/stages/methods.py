"""A method is a list of stages, each a few fields that differ from the shared config.

    config.stages = (
        {"name": "collect", "program": "collect"},
        {"name": "tune", "program": "supervised", "start": "base",
         "examples.source": "rollouts", "examples.stage": "collect"},
    )
    config.rounds = 3

runs collect_1, tune_1, collect_2, ... A stage starts from the latest one that trained, from
the base model, or from a named one; where a name is an entry's, it means that entry's latest
run. SCoRe's own chain may be written so too, or by `config.parent` (configs/stage2.py).

An entry's `share` is its part of the shared `steps`; `data.first_attempts = "stage:collect"`
gives it the first attempts of the rollouts that another entry has collected. With
`weights.source = "stage:NAME"` what another entry has trained is its base model, and so its
reference.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

LIST_FIELDS = ("stages", "rounds")  # of a method; no stage has them
OPEN_SECTIONS = (["examples"], ["data"])  # hold arguments; whoever takes them knows their names
REFERENCES = ("start", "examples.stage")  # fields that name a stage
OF_STAGE = "stage:"  # and a stage's name, in place of a path
PATHS = ("data.first_attempts", "weights.source")  # what a stage has collected; has trained


def is_method(config: Any) -> bool:
    """Whether a config lists stages, instead of being one."""
    return bool(config.get("stages", ()))


def expand(config: Any, overrides: Mapping[str, Any]) -> list[tuple[Any, str]]:
    """The config of each stage in the order in which they run, and the name it starts from.

    Args:
      overrides: of the command line; they apply to all stages.

    Raises:
      ValueError: the list is invalid; the message names the entry.
    """
    rounds = config.get("rounds", 1)
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"config.rounds is {rounds!r}; set at least 1")
    found: list[tuple[Any, str]] = []
    latest: dict[str, str] = {}  # entry: its stage of the latest round
    trained = ""
    for turn in range(1, rounds + 1):
        entries: Any = config.stages
        for number, item in enumerate(entries):
            field = f"config.stages[{number}]"
            values: dict[str, Any] = dict(item) if isinstance(item, Mapping | ConfigDict) else {}
            if not values.get("name"):
                raise ValueError(f"{field} is {item!r}; give a dict with a name and fields")
            entry = str(values["name"])
            name = f"{entry}_{turn}" if rounds > 1 else entry
            values["name"] = name
            for reference in REFERENCES:
                if reference in values:
                    values[reference] = latest.get(values[reference], values[reference])
            for path in PATHS:
                if of := named_stage(values.get(path, "")):
                    values[path] = OF_STAGE + latest.get(of, of)
            stage: Any = stage_config(config, values, overrides, field)
            known = {"": trained, "previous": trained, "base": ""}
            start = known.get(str(stage.start), str(stage.start))
            if start and start not in {s.name for s, _ in found if s.program != "collect"}:
                raise ValueError(
                    f"{field}.start is {stage.start!r}; set 'previous', 'base' or the name of a "
                    "stage before it that trains"
                )
            check_base(stage, [s for s, _ in found], start, field)
            found.append((stage, start))
            latest[entry] = name
            trained = name if stage.program != "collect" else trained
    names = [stage.name for stage, _ in found]
    if len(set(names)) < len(names):
        raise ValueError(f"config.stages names {names}; give each entry a name of its own")
    return found


def named_stage(path: str) -> str:
    """The stage that a field of PATHS names; "": it is a path, or empty."""
    return path.removeprefix(OF_STAGE) if path.startswith(OF_STAGE) else ""


def check_base(stage: Any, before: Sequence[Any], start: str, field: str) -> None:
    """Checks that a stage's base model is known when it begins, and its start has the same one.

    Args:
      before: the configs of the stages before it.
      start: name of the stage that it starts from; "": the base model.

    Raises:
      ValueError: no stage before it trains under that name, or its start has another base model.
    """
    source = stage.weights.source
    trained = {other.name: other.weights.source for other in before if other.program != "collect"}
    if (of := named_stage(source)) and of not in trained:
        raise ValueError(
            f"{field} has the weights.source {source!r}; name a stage before it that trains"
        )
    different = start and trained[start] != source
    if different and (named_stage(source) or named_stage(trained[start])):
        raise ValueError(
            f"{field} has the weights.source {source!r}, but it starts from {start!r}, whose base "
            f"model is {trained[start]!r}; set start to 'base', or weights.source alike"
        )


def stage_config(
    config: Any, values: Mapping[str, Any], overrides: Mapping[str, Any], field: str
) -> ConfigDict:
    """The shared config with a stage's own fields, then those of the command line."""
    stage: Any = ConfigDict(config.to_dict())
    values = dict(values)
    share = values.pop("share", None)
    if share is not None and not (isinstance(share, float | int) and share > 0):
        raise ValueError(f"{field} has the share {share!r}; set a part of config.steps above 0")
    for name in LIST_FIELDS:
        del stage[name]
    with stage.examples.unlocked(), stage.data.unlocked():
        for path, value in values.items():
            *section, name = path.split(".")
            place: Any = stage
            for part in section:
                place = place.get(part) if isinstance(place, ConfigDict) else None
            known = isinstance(place, ConfigDict) and (name in place or section in OPEN_SECTIONS)
            if not known:
                raise ValueError(f"{field} has {path!r}; there is no field config.{path}")
            try:
                place[name] = value
            except TypeError as error:
                raise ValueError(f"{field} has {path!r}; {error}") from error
    own = {path: v for path, v in overrides.items() if path.split(".")[0] not in LIST_FIELDS}
    if named_stage(values.get("weights.source", "")):  # another model is the first stage's
        own = {path: value for path, value in own.items() if path.split(".")[0] != "weights"}
    stage.update_from_flattened_dict(own)
    if share is not None:  # of the steps that the command line may have set
        stage.steps = max(1, round(share * stage.steps))
    return stage
