"""Runs a chain of stages: base model -> Stage I -> Stage II, each in its own folder."""

import importlib.metadata
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from score_jax import ask, evaluate, hosts, identity, report, sharding
from score_jax.build import Built, build, load_reference
from score_jax.checkpoint import fingerprint
from score_jax.data import sources
from score_jax.data.stream import Stream
from score_jax.files import read_json, write_json
from score_jax.handoff import (
    Link,
    begun,
    check_contents,
    check_folder,
    config_fields,
    describe_selection,
    draws_before,
    finished,
    open_checkpoints,
    selected_step,
    stale,
    take_over,
    told,
)
from score_jax.log import Log
from score_jax.protocol import digest
from score_jax.records import Problem, Task
from score_jax.rewards.pool import Pool
from score_jax.settings import Settings
from score_jax.signals import StopRequest, stop_on_signals
from score_jax.tasks import registry
from score_jax.train import (
    Stage,
    imitate,
    reinforce,
    start_state,
)
from score_jax.types import Params
from score_jax.watchdog import Watchdog
from score_jax.weights import embedded, export
from score_jax.weights.stops import save_stops


def run_mode(
    mode: str,
    links: list[Link],
    workdir: Path,
    *,
    config: str,
    command: str,
    prompt: str = "",
    watch: Watchdog | None = None,
) -> None:
    """Trains, evaluates, reports, exports or asks."""
    if mode == "report":
        print(f"report: {report.write_report(workdir)}")
        return
    if mode == "export":
        export_stage(links[-1], workdir)
        return
    if mode == "ask":
        ask_stage(links[-1], workdir, prompt)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    if hosts.is_first():
        write_json(workdir / "run.json", describe_run(links, config, command))
    last = links[-1]
    watch = watch or Watchdog()
    with stop_on_signals() as request:
        if mode == "train":
            for place, link in enumerate(links):
                train_stage(link, links[place - 1] if place else None, workdir, request, watch)
        else:
            evaluate_stage(last, links, workdir)
    if last.settings.program == "rl" and hosts.is_first():
        print(f"report: {report.write_report(workdir)}")
    hosts.barrier()  # none leaves before the first has written everything


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
            encoding="utf-8",
            check=False,
        )
        commit = asked.stdout.strip()
    return {
        "stages": [link.settings.name for link in links],
        "config": config,
        "command": command,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "processes": hosts.count(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "commit": commit,
    }


def train_stage(
    link: Link, parent: Link | None, workdir: Path, request: StopRequest, watch: Watchdog
) -> None:
    """Brings one stage to its last step and its evaluation, from wherever it stands."""
    settings = link.settings
    folder = workdir / settings.name
    watch.at(f"start of {settings.name}")
    check_folder(link, folder)
    if parent is not None and (note := stale(parent, folder, workdir)):
        hosts.say(f"[{settings.name}] {note}")
    if finished(link, folder):
        hosts.say(f"[{settings.name}] already in {folder}")
        return
    hosts.say(f"[{settings.name}] {settings.steps} steps in {folder}")
    built = build(settings)
    if built.chat.more_stops:
        hosts.say(f"[{settings.name}] {built.chat.describe_stops()}")
    sharding.meet(built.mesh)
    reference = load_reference(built)
    problems = sources.load(**dict(settings.data))
    registry.of_problems(problems, settings.task)
    beside = parent is not None and parent.settings.program == "rl"  # the same reference
    source = parent_folder(parent, workdir) if beside else None
    check_contents(built, reference, problems, folder, source)
    if hosts.is_first():
        write_json(folder / "config.json", config_fields(link.config))
        built.chat.tokenizer.save(folder / "tokenizer")
        save_stops(folder / "tokenizer", built.chat.stops)

    def initial() -> Params:
        return built.fresh(reference) if parent is None else take_over(parent, folder, workdir)

    with open_checkpoints(settings, folder) as checkpoints, open_pool(built, problems) as pool:
        notes: list[str] = []
        state, progress = start_state(built, checkpoints, initial, notes.append)
        with open_log(settings, folder, progress.position) as log:
            for note in notes:
                log.say(note)
            Stage(
                built=built,
                checkpoints=checkpoints,
                log=log,
                stream=open_stream(built, problems, draws_before(folder)),
                grader=pool,
                reference=reference,
                state=state,
                progress=progress,
                request=request,
                watch=watch,
                measure=open_validation(built, reference, pool),
            ).run(imitate if settings.program == "supervised" else reinforce(built.sampler()))
        step = selected_step(settings, checkpoints)
        assert step is not None, f"{folder} has no final checkpoint after its last step"
        selection = describe_selection(settings, checkpoints, step)
        hosts.say(f"[{settings.name}] {told(selection)}")
        trained = checkpoints.restore_params(step, built.abstract_state())
        params = built.policy(trained, reference)
        if settings.program == "supervised":
            whole = sharding.whole(params)
            if hosts.is_first():
                config = built.decoder.config
                embedded.save(folder / "embedded", whole, config, built.chat.tokenizer)
        before = parent_folder(parent, workdir)
        watch.at(f"evaluation of {settings.name}")
        evaluate_models(built, folder, before, reference, params, step, pool, selection=selection)


def open_stream(built: Built, problems: Sequence[Problem], begin: int) -> Stream:
    """This host's share of the training problems, behind `begin` draws of earlier stages."""
    settings = built.settings
    rows = sharding.own_rows(built.mesh, settings.batch).tolist()
    return Stream(problems, batch=settings.batch, seed=settings.seed, rows=rows, begin=begin)


def open_log(settings: Settings, folder: Path, step: int) -> Log:
    """The stage's log files; only the first host writes."""
    return Log(
        folder,
        stage=settings.name,
        step=step,
        steps=settings.steps,
        write=hosts.is_first(),
        tensorboard=settings.log.tensorboard,
        wandb=settings.log.wandb,
        progress=settings.log.progress,
    )


def open_validation(
    built: Built, reference: Params, pool: Pool
) -> Callable[[Params, int], dict[str, float]] | None:
    """Greedy accuracies on validation problems of what is trained; None: not asked for."""
    config = built.settings.evaluation
    if not config.every:
        return None
    data = dict(built.settings.data) | dict(config.validation)
    problems = first_problems(sources.load(**data), config.validation_problems)
    registry.of_problems(problems, built.settings.task, "config.task")

    def measure(trained: Params, step: int) -> dict[str, float]:
        policy = built.policy(trained, reference)
        return evaluate.validate(built, policy, problems, pool, step=step)

    return measure


def parent_folder(parent: Link | None, workdir: Path) -> Path | None:
    """The folder of the parent stage."""
    return None if parent is None else workdir / parent.settings.name


def open_pool(built: Built, problems: Any, task: Task | None = None) -> Pool:
    """Grading workers, tried out on known pairs before they are trusted.

    Args:
      task: of the problems; None: the stage's.
    """
    grading = built.settings.grading
    pool = Pool(
        grading.workers,
        deadline_seconds=grading.deadline_seconds,
        batch_deadline_seconds=grading.batch_deadline_seconds,
        recycle_after=grading.recycle_after,
        cache_size=grading.cache_size,
    )
    pool.self_test(task or built.task, [problems[i] for i in range(min(8, len(problems)))])
    return pool


def test_problems(settings: Settings) -> list[Problem]:
    """The held-out problems of config.data under config.evaluation.data."""
    problems = sources.load(**settings.measured_data)
    found = first_problems(problems, settings.evaluation.problems)
    registry.of_problems(found, settings.measured_task, "config.evaluation.task")
    return found


def first_problems(problems: Sequence[Problem], count: int) -> list[Problem]:
    """The first so many; 0: all."""
    return [problems[i] for i in range(min(count or len(problems), len(problems)))]


def evaluate_models(
    built: Built,
    folder: Path,
    parent: Path | None,
    reference: Params,
    params: Params,
    step: int,
    pool: Pool,
    *,
    file: str = "evaluation.json",
    selection: dict[str, Any] | None = None,
    say: Callable[[str], None] = hosts.say,
) -> None:
    """Measures base and trained policy on held-out problems; takes over the parent's numbers.

    What is measured is kept until all is: a run that was killed goes on.
    """
    problems, name, path = test_problems(built.settings), built.settings.name, folder / file
    protocol, base = evaluate.protocol_of(built, problems), int(fingerprint(reference))
    models = {} if parent is None else evaluate.known_models(parent, protocol, base)
    under_way = folder / "measuring"

    def measure(model: str, params: Params, step: int) -> dict[str, Any]:
        mark = digest([protocol["hash"], int(fingerprint(params)), step])
        return evaluate.measure_model(
            built, params, problems, pool, step=step, name=model, kept=under_way / mark
        )

    if "base" not in models and built.settings.program == "rl":
        models["base"] = measure("base", reference, 0)
    if params is reference and "base" in models:  # nothing was trained
        models[name] = models["base"]
    else:
        models[name] = measure(name, params, step)
    if hosts.is_first():
        evaluate.write_evaluation(
            path,
            built,
            models,
            step=step,
            protocol=protocol,
            reference=base,
            selection=selection,
        )
        shutil.rmtree(under_way, ignore_errors=True)
    hosts.barrier()  # what reads it next may be another host
    for model in models:
        say(f"[{name}] {evaluate.summary_line(model, models[model])}")
    say(f"[{name}] evaluation of step {step} on {len(problems)} problems: {path}")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A stage's policy as the workdir holds it."""

    built: Built
    reference: Params
    params: Params  # of the whole model; the reference's where there is no checkpoint
    step: int  # of the checkpoint; 0: there is none


def find_policy(link: Link, workdir: Path) -> Found:
    """The selected checkpoint of a stage, the newest of one under way, else the base model."""
    settings = link.settings
    folder = workdir / settings.name
    check_folder(link, folder, policy_only=True)
    built = build(settings)
    sharding.meet(built.mesh)
    reference = params = load_reference(built)
    if hosts.from_first(begun(folder)):
        identity.compare(identity.policy_fingerprints(built, reference), folder, settings)
    step = 0
    if (folder / "checkpoints").exists():
        with open_checkpoints(settings, folder) as checkpoints:
            step = selected_step(settings, checkpoints) or max(checkpoints.steps(), default=0)
            if step:
                trained = checkpoints.restore_params(step, built.abstract_state())
                params = built.policy(trained, reference)
    return Found(built=built, reference=reference, params=params, step=step)


def describe_policy(found: Found) -> str:
    """Which model was found, for people."""
    settings = found.built.settings
    if found.step:
        return f"{settings.name} at step {found.step}"
    return f"the base model {settings.weights.source} ({settings.name} has no checkpoint)"


def evaluate_stage(link: Link, links: list[Link], workdir: Path) -> None:
    """Measures a stage's policy beside the base model, on any task."""
    found = find_policy(link, workdir)
    folder = workdir / link.settings.name
    config = read_json(folder / "config.json") or {}
    task = link.settings.measured_task
    own = config.get("evaluation.task") or config.get("task", task)
    name = "evaluation" if own == task else f"evaluation_{task}"
    parent = parent_folder(links[-2] if len(links) > 1 else None, workdir)
    problems = test_problems(link.settings)
    with open_pool(found.built, problems, found.built.measured_task) as pool:
        evaluate_models(
            found.built,
            folder,
            parent,
            found.reference,
            found.params,
            found.step,
            pool,
            file=f"{name}.json",
        )


def export_stage(link: Link, workdir: Path) -> None:
    """Writes a stage's policy, its adapter merged, as a Hugging Face folder."""
    found = find_policy(link, workdir)
    folder = workdir / link.settings.name / "export"
    export.export(found.params, found.built.decoder.config, found.built.chat, folder)
    hosts.say(f"exported {describe_policy(found)}: {folder}")


def ask_stage(link: Link, workdir: Path, prompt: str) -> None:
    """Shows a stage's policy at work on one problem, or on what people type."""
    found = find_policy(link, workdir)
    print(describe_policy(found))
    ask.interact(found.built, found.params, prompt, seed=link.settings.seed)
