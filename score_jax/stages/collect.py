"""Keeps graded rollouts of a fixed policy: data for supervised learning and first attempts."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from score_jax.data import store
from score_jax.data.stream import Stream
from score_jax.distributed import processes
from score_jax.distributed.processes import any_process
from score_jax.distributed.signals import StopRequest
from score_jax.distributed.watchdog import Watchdog
from score_jax.report.json_files import read_json
from score_jax.rl.keys import run_key
from score_jax.rl.rollout import Grader, RolloutPrograms, collect_rollout
from score_jax.stages import rollouts
from score_jax.stages.build import StagePrograms
from score_jax.stages.log import open_bar
from score_jax.stages.settings import Settings
from score_jax.types import Params

MB = 1e6


def missing_steps(folder: Path, settings: Settings) -> list[int]:
    """Steps whose rollouts are not kept yet; as the first host sees them, for all hosts."""
    kept = store.steps(folder / rollouts.NAME)
    if kept and rollouts.read_whole(folder, settings, kept[-1]) is None:
        kept.pop()  # a host was killed before it had written its rows
    missing = set(range(settings.steps)) - set(kept)
    return processes.broadcast_from_first(sorted(missing))


def collect(
    programs: StagePrograms,
    devices: RolloutPrograms,
    stream: Stream,
    grader: Grader,
    *,
    params: Params,
    folder: Path,
    request: StopRequest,
    watchdog: Watchdog,
) -> None:
    """Draws, grades and keeps `steps` batches of dialogues; steps that are kept are left out.

    Args:
      params: of the policy, of the whole model.

    Raises:
      Interrupted: a signal was received; what was drawn is kept.
    """
    settings, devices = programs.settings, replace(devices, score=lambda *_: None)
    missing = missing_steps(folder, settings)
    handoff = processes.broadcast_from_first(read_json(folder / "handoff.json"))
    right = np.zeros(0)
    request.after_save = True  # else a signal would stop this host alone, at once
    shown, done = settings.log.progress and processes.is_first(), settings.steps - len(missing)
    with open_bar(settings.name, settings.steps, shown=shown, initial=done, unit="step") as bar:
        for step in missing:
            if any_process(bool(request.number)):
                raise request.interrupted(": the same command goes on from here")
            stream.position = step
            draws, indices, problems = stream.next()
            rollout = collect_rollout(
                devices,
                grader,
                params=params,
                reference=params,
                key=run_key(settings.seed, "collect", stage=settings.name),
                draws=draws,
                problems=problems,
                indices=indices,
                policy_step=handoff["step"] if handoff else 0,
                begin=lambda phase, step=step: watchdog.enter_phase(f"{phase} of step {step + 1}"),
            )
            rollouts.write(folder, programs, devices.encoder, rollout, step)
            right = np.append(right, rollout.local.rewards[:, -1] >= 1.0)
            bar.update(1)
    request.after_save = False
    processes.barrier()  # the next stage reads what all hosts have written
    size = store.size_bytes(folder / rollouts.NAME)
    share = f", {100 * right.mean():.1f}% right at last" if len(right) else ""
    processes.log(
        f"[{settings.name}] {settings.steps} steps of rollouts{share}, {size / MB:.1f} MB: "
        f"{folder / rollouts.NAME}"
    )
