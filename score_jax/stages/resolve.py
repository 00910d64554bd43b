"""From a config to the stages that run: the chain of its parents, or the list of a method.

Configs are files of Python; a chain's stages name their parents (`config.parent`), a method
lists its stages (`config.stages`, stages.methods).
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_jax.stages.handoff import StageConfig
from score_jax.stages.methods import expand, is_method, named_stage
from score_jax.stages.settings import Settings, parse

# Overrides of these fields on the command line apply to the parent stages as well: they define
# what is trained and measured, not how one stage is trained.
SHARED_FIELDS = (
    "seed", "task", "data", "tokenizer", "weights", "model", "lora", "compute", "mesh", "grading",
    "evaluation", "log", "alarms", "profile", "export",
)  # fmt: skip
CONFIG_ERRORS = (  # raised by ConfigDict, and by Python for a file that is no config
    ValueError, AttributeError, KeyError, TypeError, SyntaxError, ImportError,
)  # fmt: skip


def load_config(path: str) -> ConfigDict:
    """The config that `get_config` of FILE or FILE:preset returns.

    Raises:
      ValueError: there is no such file or preset, or it sets fields that do not exist.
    """
    name, _, preset = path.partition(":")
    if not Path(name).is_file():
        raise ValueError(f"config.parent is {path!r}; there is no file {name}")
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None and spec.loader is not None, f"{name} is not a Python file"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(preset) if preset else module.get_config()
    except CONFIG_ERRORS as error:
        raise config_error(f"config.parent {path!r}", error) from error


def find_parent(path: str, child: str) -> str:
    """The path of the config that a child config names as its parent.

    It is searched in the folder of the child's file, then in the folder above it (configs of a
    repository call each other configs/stage1.py), then in the current folder.

    Args:
      path: FILE or FILE:preset, as written in the child.
      child: FILE or FILE:preset of the child; "": it has no file.
    """
    name, colon, preset = path.partition(":")
    folder = Path(child.partition(":")[0]).parent
    for place in (folder, folder.parent) if child else ():
        if (place / name).is_file():
            return f"{place / name}{colon}{preset}"
    return path


def resolve_stages(config: Any, overrides: Mapping[str, Any], path: str = "") -> list[StageConfig]:
    """The stages from the first to the one asked for.

    Args:
      overrides: of the command line; those of SHARED_FIELDS apply to the parents too.
      path: FILE or FILE:preset of the config.

    Raises:
      ValueError: a config is invalid, or its parents form a circle.
    """
    if is_method(config):
        return method_stages(config, overrides)
    configs = [config]
    child = "" if "parent" in overrides else path  # a typed path is relative to the current folder
    while parent := configs[0].get("parent", ""):
        child = parent = find_parent(parent, child)
        config = load_config(parent)
        shared = {name: v for name, v in overrides.items() if name.split(".")[0] in SHARED_FIELDS}
        try:
            config.update_from_flattened_dict(shared)
        except CONFIG_ERRORS as error:
            raise config_error(f"config.parent {parent!r}", error) from error
        configs.insert(0, config)
        names = [config.name for config in configs]
        if len(set(names)) < len(names):
            raise ValueError(f"config.parent forms a circle: {' -> '.join(names)}")
    stages: list[StageConfig] = []
    for config in configs:
        if named_stage(config.weights.source):
            raise ValueError(
                f"config.weights.source is {config.weights.source!r}, but the config lists no "
                "stages; name a folder, or see configs/warm_up.py"
            )
        stages.append(make_stage(config, stages[-1] if stages else None))
    return stages


def method_stages(config: ConfigDict, overrides: Mapping[str, Any]) -> list[StageConfig]:
    """The stages that a method lists, in the order in which they run."""
    stages: dict[str, StageConfig] = {}
    try:
        expanded = expand(config, overrides)
    except CONFIG_ERRORS as error:
        raise config_error("config.stages", error) from error
    for own, start in expanded:
        stages[str(own.name)] = make_stage(own, stages[start] if start else None)
    return list(stages.values())


def make_stage(config: ConfigDict, parent: StageConfig | None) -> StageConfig:
    """Parses a stage's config and checks it against the stage that it starts from."""
    stage = StageConfig(settings=parse(config), config=config, parent=parent)
    if parent is not None:
        check_adapters(parent, stage)
    return stage


def planned(stages: Sequence[StageConfig]) -> Settings:
    """The last stage's settings; for what another one trains, the weights that that begins with.

    They have the same shape, and planning and measuring need no more.
    """
    settings = stages[-1].settings
    sources = {stage.settings.name: stage.settings.weights for stage in stages}
    while name := named_stage(settings.weights.source):
        settings = replace(settings, weights=sources[name])  # its adapter with it
    return settings


def check_adapters(parent: StageConfig, stage: StageConfig) -> None:
    """Checks that a stage can start from what its parent trains.

    Raises:
      ValueError: their adapters differ.
    """
    first, second = parent.settings, stage.settings
    if first.lora == second.lora:
        return
    ranks = [0 if settings.lora is None else settings.lora.rank for settings in (second, first)]
    raise ValueError(
        f"config.lora of {second.name!r} differs from its parent's: lora.rank is {ranks[0]}, but "
        f"its parent {first.name!r} has {ranks[1]}; set the section alike in both"
    )


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; of one that quotes a traceback, the last line."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def config_error(path: str, error: BaseException) -> ValueError:
    """The error of a config file or of an override on the command line."""
    missing = "there is no field " if isinstance(error, AttributeError | KeyError) else ""
    return ValueError(f"{path}: {missing}{one_line(error)}")
