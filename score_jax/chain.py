"""Runs a chain of stages: base model -> Stage I -> Stage II, each in its own folder.

A stage hands its best policy on. The hand-off is recorded: which parent, which step,
what was reset (the optimiser) and what was kept (the base model as the reference).
"""

import importlib.metadata
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from score_jax import evaluate, report
from score_jax.build import Built, build, load_reference
from score_jax.checkpoint import Checkpoints, StorageError, read_json, write_json
from score_jax.data import sources
from score_jax.data.stream import Stream
from score_jax.log import Log
from score_jax.records import Problem
from score_jax.rewards.pool import Pool
from score_jax.settings import Settings
from score_jax.train import Stage, imitate, reinforce, start_state, stop_on_signals
from score_jax.types import Params
from score_jax.weights import embedded

# Fields that may change between two runs in one folder without making it another run.
FREE = ("steps", "checkpoint", "evaluation", "log", "grading", "parent", "gap_limit", "mesh")


@dataclass(frozen=True)
class Link:
    """One stage of a chain, as settings and as the config they came from."""

    settings: Settings
    config: ConfigDict


def run_mode(mode: str, links: list[Link], workdir: Path, *, config: str, command: str) -> None:
    """Trains, evaluates or reports."""
    if mode == "report":
        print(f"report: {report.write_report(workdir)}")
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "run.json", describe_run(links, config, command))
    last = links[-1]
    if mode == "train":
        for place, link in enumerate(links):
            train_stage(link, links[place - 1] if place else None, workdir)
    else:
        evaluate_stage(last, links, workdir)
    if last.settings.program == "rl":
        print(f"report: {report.write_report(workdir)}")


def describe_run(links: list[Link], config: str, command: str) -> dict[str, Any]:
    """What run.json records."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    git = shutil.which("git")
    commit = ""
    if git:
        here = Path(__file__).parent
        asked = subprocess.run(
            [git, "-C", str(here), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
        )
        commit = asked.stdout.strip()
    return {
        "stages": [link.settings.name for link in links],
        "config": config,
        "command": command,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "commit": commit,
    }


def open_checkpoints(settings: Settings, folder: Path) -> Checkpoints:
    """The checkpoints of a stage."""
    kept = settings.checkpoint
    return Checkpoints(folder / "checkpoints", every=kept.every, keep=kept.keep)


def selected_step(settings: Settings, checkpoints: Checkpoints) -> int | None:
    """The checkpoint that a finished stage hands on; None while it is unfinished."""
    steps = checkpoints.steps()
    if not steps or steps[-1] < settings.steps:
        return None
    return checkpoints.best() if settings.checkpoint.select == "best" else steps[-1]


def check_folder(link: Link, folder: Path) -> None:
    """Refuses to go on in a folder that another config has begun.

    Raises:
      ValueError: a field that shapes the run differs.
    """
    before = read_json(folder / "config.json")
    if before is None or not (folder / "checkpoints").exists():
        return
    now = config_fields(link.config)
    for name in sorted(set(before) | set(now)):
        if name.split(".")[0] in FREE or before.get(name) == now.get(name):
            continue
        raise ValueError(
            f"config.{name} is {now.get(name)}, but {folder} was begun with {before.get(name)}; "
            "choose another --workdir, or set the field back"
        )


def config_fields(config: ConfigDict) -> dict[str, Any]:
    """A config as one flat dictionary of JSON values."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, ConfigDict | dict):
            for name, part in value.items():
                visit(f"{prefix}{name}.", part)
        else:
            flat[prefix[:-1]] = list(value) if isinstance(value, tuple) else value

    visit("", config)
    return flat


def train_stage(link: Link, parent: Link | None, workdir: Path) -> None:
    """Brings one stage to its last step and its evaluation, from wherever it stands."""
    settings = link.settings
    folder = workdir / settings.name
    if finished(link, folder):
        print(f"[{settings.name}] already in {folder}")
        return
    check_folder(link, folder)
    built = build(settings)
    reference = load_reference(built)
    checkpoints = open_checkpoints(settings, folder)
    log: list[str] = []
    write_json(folder / "config.json", config_fields(link.config))
    built.chat.tokenizer.save(folder / "tokenizer")

    def initial() -> Params:
        if parent is None:
            return reference
        return take_over(built, parent, folder, workdir)

    state, progress = start_state(built, checkpoints, initial, log.append)
    problems = sources.load(**dict(settings.data))
    stream = Stream(
        problems,
        batch=settings.batch,
        seed=settings.seed,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    with open_pool(built, problems) as pool, stop_on_signals() as request:
        logger = Log(
            folder,
            stage=settings.name,
            step=progress.position,
            steps=settings.steps,
            write=jax.process_index() == 0,
            tensorboard=settings.log.tensorboard,
            wandb=settings.log.wandb,
            progress=settings.log.progress,
        )
        for message in log:
            logger.say(message)
        stage = Stage(
            built=built,
            folder=folder,
            checkpoints=checkpoints,
            log=logger,
            stream=stream,
            grader=pool,
            reference=reference,
            state=state,
            progress=progress,
            request=request,
        )
        try:
            stage.run(imitate if settings.program == "supervised" else reinforce(built.sampler()))
        finally:
            logger.close()
        step = selected_step(settings, checkpoints)
        assert step is not None, f"{folder} has no final checkpoint after its last step"
        params = checkpoints.restore_params(step, built.abstract_state())
        evaluate_models(
            built, folder, parent_folder(parent, workdir), reference, params, step, pool
        )
    checkpoints.close()


def finished(link: Link, folder: Path) -> bool:
    """Whether a stage is trained and evaluated."""
    evaluation = read_json(folder / "evaluation.json")
    if evaluation is None or not (folder / "checkpoints").exists():
        return False
    checkpoints = open_checkpoints(link.settings, folder)
    step = selected_step(link.settings, checkpoints)
    checkpoints.close()
    return step is not None and evaluation["step"] == step


def parent_folder(parent: Link | None, workdir: Path) -> Path | None:
    """The folder of the parent stage."""
    return None if parent is None else workdir / parent.settings.name


def take_over(built: Built, parent: Link, folder: Path, workdir: Path) -> Params:
    """The parent's selected policy; the hand-off is written down.

    Raises:
      StorageError: the parent has no finished checkpoint.
    """
    source = workdir / parent.settings.name
    checkpoints = open_checkpoints(parent.settings, source)
    step = selected_step(parent.settings, checkpoints)
    if step is None:
        raise StorageError(f"{source} has no finished checkpoint; run {parent.settings.name} first")
    # The optimiser of the parent may have another shape: its own programs say which.
    params = checkpoints.restore_params(step, build(parent.settings).abstract_state())
    reward = checkpoints.reward(step)
    checkpoints.close()
    write_json(
        folder / "handoff.json",
        {
            "parent": parent.settings.name,
            "step": step,
            "metrics": {"training_reward": reward},
            "reset": ["optimizer", "step", "baseline"],
            "kept": ["reference: the base model, as in the parent"],
        },
    )
    return params


def open_pool(built: Built, problems: Any) -> Pool:
    """Grading workers, tried out on known pairs before they are trusted."""
    grading = built.settings.grading
    pool = Pool(
        grading.workers,
        deadline_seconds=grading.deadline_seconds,
        batch_deadline_seconds=grading.batch_deadline_seconds,
        recycle_after=grading.recycle_after,
        cache_size=grading.cache_size,
    )
    pool.self_test(built.task, [problems[i] for i in range(min(8, len(problems)))])
    return pool


def test_problems(settings: Settings) -> list[Problem]:
    """The held-out problems of config.data under config.evaluation.data."""
    problems = sources.load(**(dict(settings.data) | dict(settings.evaluation.data)))
    count = settings.evaluation.problems or len(problems)
    return [problems[i] for i in range(min(count, len(problems)))]


def evaluate_models(
    built: Built,
    folder: Path,
    parent: Path | None,
    reference: Params,
    params: Params,
    step: int,
    pool: Pool,
    say: Callable[[str], None] = print,
) -> None:
    """Measures base and trained policy on held-out problems; takes over the parent's numbers."""
    problems = test_problems(built.settings)
    models = {} if parent is None else evaluate.known_models(parent, built, problems)
    if "base" not in models and built.settings.program == "rl":
        models["base"] = evaluate.measure_model(built, reference, problems, pool, step=0)
    name = built.settings.name
    models[name] = evaluate.measure_model(built, params, problems, pool, step=step)
    path = evaluate.write_evaluation(folder, built, models, problems, step=step)
    for model in models:
        say(f"[{name}] {evaluate.summary_line(model, models[model])}")
    say(f"[{name}] evaluation of step {step} on {len(problems)} problems: {path}")


def evaluate_stage(link: Link, links: list[Link], workdir: Path) -> None:
    """Measures the selected checkpoint of a stage, or the newest of one under way."""
    settings = link.settings
    folder = workdir / settings.name
    built = build(settings)
    checkpoints = open_checkpoints(settings, folder)
    step = selected_step(settings, checkpoints) or max(checkpoints.steps(), default=None)
    reference = load_reference(built)
    params = reference
    if step is not None:
        params = checkpoints.restore_params(step, built.abstract_state())
    checkpoints.close()
    parent = parent_folder(links[-2] if len(links) > 1 else None, workdir)
    with open_pool(built, test_problems(settings)) as pool:
        evaluate_models(built, folder, parent, reference, params, step or 0, pool)
