"""Runs a chain of stages: base model -> Stage I -> Stage II, each in its own folder."""

import importlib.metadata
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from score_jax.data.stream import Stream
from score_jax.distributed import processes, sharding
from score_jax.distributed.signals import StopRequest, stop_on_signals
from score_jax.distributed.watchdog import Watchdog
from score_jax.model.weights import embedded, export
from score_jax.model.weights.stops import save_stops
from score_jax.records import Problem
from score_jax.report import page
from score_jax.report.json_files import read_json, write_json
from score_jax.stages import ask, evaluate, identity, problem_sets
from score_jax.stages.build import Built, build, load_reference
from score_jax.stages.checkpoint import fingerprint
from score_jax.stages.handoff import (
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
from score_jax.stages.log import Log
from score_jax.stages.preflight import Checked, check_room, check_stage, select_and_tell, try_row
from score_jax.stages.problem_sets import ProblemSet
from score_jax.stages.protocol import digest
from score_jax.stages.settings import Settings
from score_jax.stages.train import Stage, imitate, reinforce, start_state
from score_jax.tasks.grading.pool import Pool
from score_jax.types import Params


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
        print(f"report: {page.write_report(workdir)}")
        return
    if mode == "export":
        export_stage(links[-1], workdir)
        return
    if mode == "ask":
        ask_stage(links[-1], workdir, prompt)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    record = describe_run(links, config, command)
    if processes.is_first():
        write_json(workdir / "run.json", record)
    last = links[-1]
    watch = watch or Watchdog()
    with stop_on_signals() as request:
        if mode == "train":
            checked = check_chain(links, workdir, watch)
            counts = {name: stage.counts() for name, stage in checked.items()}
            if processes.is_first():
                write_json(workdir / "run.json", record | {"problems": counts})
            for place, link in enumerate(links):
                parent = links[place - 1] if place else None
                stage = checked.get(link.settings.name)
                train_stage(link, parent, stage, workdir, request, watch)
        else:
            evaluate_stage(last, links, workdir)
    if last.settings.program == "rl" and processes.is_first():
        print(f"report: {page.write_report(workdir)}")
    processes.barrier()  # none leaves before the first has written everything


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
        "processes": processes.count(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "commit": commit,
    }


def check_chain(links: list[Link], workdir: Path, watch: Watchdog) -> dict[str, Checked]:
    """The preflight of the stages that are not finished yet, by name, before any is trained."""
    checked: dict[str, Checked] = {}
    for link in links:
        name = link.settings.name
        watch.at(f"preflight of {name}")
        check_folder(link, workdir / name)
        if not finished(link, workdir / name):
            checked[name] = check_stage(link.settings, workdir)
    check_room([stage.built for stage in checked.values()], workdir)
    return checked


def train_stage(
    link: Link,
    parent: Link | None,
    checked: Checked | None,
    workdir: Path,
    request: StopRequest,
    watch: Watchdog,
) -> None:
    """Brings one stage to its last step and its evaluation, from wherever it stands.

    Args:
      checked: by the preflight; None: the stage is finished.
    """
    settings = link.settings
    folder = workdir / settings.name
    watch.at(f"start of {settings.name}")
    if parent is not None and (note := stale(parent, folder, workdir)):
        processes.say(f"[{settings.name}] {note}")
    if checked is None:
        processes.say(f"[{settings.name}] already in {folder}")
        return
    processes.say(f"[{settings.name}] {settings.steps} steps in {folder}")
    built = checked.built
    if built.chat.more_stops:
        processes.say(f"[{settings.name}] {built.chat.describe_stops()}")
    sharding.meet(built.mesh)
    reference = load_reference(built)
    beside = parent is not None and parent.settings.program == "rl"  # the same reference
    source = parent_folder(parent, workdir) if beside else None
    check_contents(built, reference, checked.training.problems, folder, source)
    if processes.is_first():
        write_json(folder / "config.json", config_fields(link.config))
        built.chat.tokenizer.save(folder / "tokenizer")
        save_stops(folder / "tokenizer", built.chat.stops)

    def initial() -> Params:
        return built.fresh(reference) if parent is None else take_over(parent, folder, workdir)

    with open_checkpoints(settings, folder) as checkpoints, open_pool(built) as pool:
        notes: list[str] = []
        state, progress = start_state(built, checkpoints, initial, notes.append)
        if parent is None and not progress.position:
            watch.at(f"trial row of {settings.name}")
            gap = try_row(built, checked.evaluation, reference, pool)
            processes.say(
                f"[{settings.name}] a trial row: sampler and scorer agree to {gap:.1g} nats"
            )
        with open_log(settings, folder, progress.position) as log:
            for note in notes:
                log.say(note)
            Stage(
                built=built,
                checkpoints=checkpoints,
                log=log,
                stream=open_stream(built, checked.training.problems, draws_before(folder)),
                grader=pool,
                reference=reference,
                state=state,
                progress=progress,
                request=request,
                watch=watch,
                measure=open_validation(built, checked.validation, reference, pool),
            ).run(imitate if settings.program == "supervised" else reinforce(built.sampler()))
        step = selected_step(settings, checkpoints)
        assert step is not None, f"{folder} has no final checkpoint after its last step"
        selection = describe_selection(settings, checkpoints, step)
        processes.say(f"[{settings.name}] {told(selection)}")
        trained = checkpoints.restore_params(step, built.abstract_state())
        params = built.policy(trained, reference)
        if settings.program == "supervised":
            whole = sharding.whole(params)
            if processes.is_first():
                config = built.decoder.config
                embedded.save(folder / "embedded", whole, config, built.chat.tokenizer)
        before = parent_folder(parent, workdir)
        watch.at(f"evaluation of {settings.name}")
        evaluate_models(
            built,
            checked.evaluation,
            folder,
            before,
            reference,
            params,
            step,
            pool,
            selection=selection,
        )


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
        write=processes.is_first(),
        tensorboard=settings.log.tensorboard,
        wandb=settings.log.wandb,
        progress=settings.log.progress,
    )


def open_validation(
    built: Built, asked: ProblemSet | None, reference: Params, pool: Pool
) -> Callable[[Params, int], dict[str, float]] | None:
    """Greedy accuracies on validation problems of what is trained; None: not asked for."""
    if asked is None:
        return None

    def measure(trained: Params, step: int) -> dict[str, float]:
        policy = built.policy(trained, reference)
        return evaluate.validate(built, policy, asked.problems, pool, step=step)

    return measure


def parent_folder(parent: Link | None, workdir: Path) -> Path | None:
    """The folder of the parent stage."""
    return None if parent is None else workdir / parent.settings.name


def open_pool(built: Built) -> Pool:
    """Grading workers, tried out on the tasks' known pairs before they are trusted."""
    pool = problem_sets.open_pool(built.settings.grading)
    for task in {task.name: task for task in (built.task, built.measured_task)}.values():
        pool.self_test(task, [])
    return pool


def evaluate_models(
    built: Built,
    asked: ProblemSet,
    folder: Path,
    parent: Path | None,
    reference: Params,
    params: Params,
    step: int,
    pool: Pool,
    *,
    file: str = "evaluation.json",
    selection: dict[str, Any] | None = None,
    say: Callable[[str], None] = processes.say,
) -> None:
    """Measures base and trained policy on held-out problems; takes over the parent's numbers.

    What is measured is kept until all is: a run that was killed goes on.
    """
    problems, name, path = asked.problems, built.settings.name, folder / file
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
    if processes.is_first():
        evaluate.write_evaluation(
            path,
            built,
            models,
            step=step,
            protocol=protocol,
            reference=base,
            left_out=asked.left_out(),
            selection=selection,
        )
        shutil.rmtree(under_way, ignore_errors=True)
    processes.barrier()  # what reads it next may be another host
    for model in models:
        say(f"[{name}] {evaluate.summary_line(model, models[model])}")
    left = sum(map(len, asked.left_out().values()))
    on = f"{len(problems)} problems" + (f" ({left} left out)" if left else "")
    say(f"[{name}] evaluation of step {step} on {on}: {path}")


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
    if processes.from_first(begun(folder)):
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
    asked = select_and_tell(found.built, problem_sets.measured(link.settings), workdir)
    with open_pool(found.built) as pool:
        evaluate_models(
            found.built,
            asked,
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
    processes.say(f"exported {describe_policy(found)}: {folder}")


def ask_stage(link: Link, workdir: Path, prompt: str) -> None:
    """Shows a stage's policy at work on one problem, or on what people type."""
    found = find_policy(link, workdir)
    print(describe_policy(found))
    ask.interact(found.built, found.params, prompt, seed=link.settings.seed)
