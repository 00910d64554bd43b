"""Measures self-correction on held-out problems, with greedy and with sampled decoding.

All models of a chain are measured on the same problems with the same keys. Measurements in
the parent's evaluation.json are reused if protocol and base model are the same.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from score_jax.data import store
from score_jax.distributed import processes
from score_jax.distributed.sharding import local_rows, own_rows, row_shards
from score_jax.records import UNGRADED, Problem, Task, Transcript
from score_jax.report import metrics, scaling
from score_jax.report.intervals import Interval
from score_jax.report.json_files import read_json, write_json
from score_jax.rl.dialogue import DialoguePlan, Encoder
from score_jax.rl.keys import run_key
from score_jax.rl.rollout import Grader, grade_rollout
from score_jax.rl.sampling_plan import SamplingConfig
from score_jax.stages import protocol as protocols
from score_jax.stages import rollouts, saved_evaluation
from score_jax.stages.build import StagePrograms, greedy_sampling
from score_jax.stages.identity import data_source
from score_jax.stages.log import open_bar
from score_jax.stages.problem_sets import ProblemSet
from score_jax.stages.settings import Settings
from score_jax.tasks.grading.agreement import one_spelling
from score_jax.types import Episodes, Params

MEASURED = ("step", "greedy", "sampled", "by_task", "scaling")
NAMED_SAMPLES = 4  # of a vote, from which on the log has its gain
MAX_TRANSCRIPTS = 40  # dialogues per model in evaluation.json, for the report


def first_rows(episodes: Episodes, count: int) -> Episodes:
    """Keeps the first `count` rows; the others pad the batch."""
    return jax.tree.map(lambda x: x[:count], episodes)


def sample_attempts(
    programs: StagePrograms,
    params: Params,
    asked: ProblemSet,
    grader: Grader,
    *,
    sampling: SamplingConfig,
    step: int,
    partial_file: Path | None = None,
    label: str = "",
) -> list[Transcript]:
    """Samples and grades dialogues on all problems; all hosts must call.

    The devices draw a batch while the one before is graded. With several hosts that one is saved
    when both are drawn, since hosts exchange their dialogues on the devices.

    Args:
      partial_file: dialogues are appended to it and read from it when an interrupted
        evaluation is resumed; None: they are not saved.
      label: name of the measurement on the progress bar; "": no progress bar.

    Returns:
      `sampling.group_size` dialogues for each problem, in the order of the problems, on all
      hosts.
    """
    dialogues = saved_evaluation.read(partial_file) if partial_file else {}
    if partial_file:
        saved_evaluation.write(partial_file, dialogues)
    count = len(asked.problems)
    remaining = [index for index in range(count) if index not in dialogues]
    shards = row_shards(programs.mesh)
    batch = -(-min(programs.settings.evaluation.batch, count) // shards) * shards
    params, encoder = programs.for_sampling(params), encoder_of(programs, asked)

    def draw(indices: Sequence[int]) -> Batch:
        return draw_batch(
            programs, encoder, params, asked.problems, indices,
            sampling=sampling, step=step, batch=batch,
        )  # fmt: skip

    batches = [remaining[start : start + batch] for start in range(0, len(remaining), batch)]
    with progress_bar(programs.settings, label, count, len(dialogues)) as bar:
        ahead = draw(batches[0]) if batches else None
        for indices, after in itertools.zip_longest(batches, batches[1:]):
            assert ahead is not None
            drawn = ahead
            jax.block_until_ready(drawn.episodes)  # before memory for more is taken
            ahead = draw(after) if after else None
            batch_dialogues = grade_batch(programs, encoder, drawn, grader, step=step)
            if partial_file:
                saved_evaluation.add(partial_file, indices, batch_dialogues)
            dialogues |= dict(zip(indices, batch_dialogues, strict=True))
            bar.update(len(indices))
    return [record for index in range(count) for record in dialogues[index]]


def encoder_of(programs: StagePrograms, asked: ProblemSet) -> Encoder:
    """What encodes held-out problems as the rows of the evaluation's plan."""
    return programs.encoder(programs.settings.measured_plan, asked.prompt_limit, asked.tasks)


def progress_bar(settings: Settings, label: str, total: int, done: int) -> tqdm:
    """A progress bar over problems, on the first host; hidden if `label` is empty."""
    shown = bool(label) and settings.log.progress and processes.is_first()
    return open_bar(f"{settings.name}: {label}", total, shown=shown, initial=done, unit="problem")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Dialogues that the devices draw."""

    indices: Sequence[int]  # of its problems
    own: Sequence[int]  # of those of this host
    problems: Sequence[Problem]  # all that were asked
    episodes: Episodes  # global device arrays; missing problems are padded
    group_size: int


def draw_batch(
    programs: StagePrograms,
    encoder: Encoder,
    params: Params,
    problems: Sequence[Problem],
    indices: Sequence[int],
    *,
    sampling: SamplingConfig,
    step: int,
    batch: int,
) -> Batch:
    """Lets the devices begin to draw the dialogues of one batch.

    Args:
      params: from `StagePrograms.for_sampling`.
      indices: of the batch's problems in `problems`.
      batch: size of the sampling program's batch, in problems; missing ones are padded.
    """
    local_batch = own_rows(programs.mesh, batch)
    own = [indices[row] for row in local_batch if row < len(indices)]
    asked = own + [indices[0]] * (len(local_batch) - len(own))
    prompts = encoder.prompts([problems[index] for index in asked], asked, policy_step=step)
    sample = programs.sample(sampling, encoder.plan)
    key = run_key(programs.settings.evaluation.seed, "evaluate")
    return Batch(
        indices=indices,
        own=own,
        problems=problems,
        episodes=sample(params, programs.to_global(prompts), key),
        group_size=sampling.group_size,
    )


def grade_batch(
    programs: StagePrograms, encoder: Encoder, batch: Batch, grader: Grader, *, step: int
) -> list[list[Transcript]]:
    """Waits for the dialogues of one batch and grades them; each host grades its own rows.

    Returns:
      The dialogues of each problem, in the order of its indices, on all hosts.
    """
    size, records = batch.group_size, list[Transcript]()
    episodes = local_rows(batch.episodes)
    if batch.own:
        unpadded = first_rows(episodes, len(batch.own) * size)
        rows = [batch.problems[draw] for draw in unpadded.ids.draw.tolist()]
        graded = grade_rollout(encoder, grader, rows, unpadded)
        name, numbers = programs.settings.name, range(len(rows))
        found = rollouts.dialogues(encoder, rows, unpadded, graded, name, step, numbers)
        records = [store.transcript(dialogue) for dialogue in found]
    merged = merge_hosts(processes.all_gather_objects((batch.own, records)), size)
    return [merged[i * size : (i + 1) * size] for i in range(len(batch.indices))]


def merge_hosts(
    parts: Sequence[tuple[Sequence[int], Sequence[Transcript]]], samples: int
) -> list[Transcript]:
    """Merges the hosts' dialogues in the order of their problems.

    Hosts that share a model's shards grade the same dialogues. The record with the fewest
    ungraded attempts is kept.

    Args:
      parts: of each host, the indices of its problems and `samples` dialogues for each.
    """
    merged: dict[tuple[int, int], Transcript] = {}
    for indices, records in parts:
        keys = [(index, sample) for index in indices for sample in range(samples)]
        # Not strict: a host whose rows are all padding has no records.
        for key, record in zip(keys, records, strict=False):
            merged[key] = min(merged.get(key, record), record, key=count_ungraded)
    return [merged[key] for key in sorted(merged)]


def count_ungraded(record: Transcript) -> int:
    """Number of attempts that the grader gave no verdict on (timeouts, crashes)."""
    return sum(verdict in UNGRADED for verdict in record.verdicts)


def measure_model(
    programs: StagePrograms,
    params: Params,
    asked: ProblemSet,
    grader: Grader,
    *,
    step: int,
    name: str = "",
    partial_folder: Path | None = None,
) -> dict[str, Any]:
    """Measures one model; returns its metrics, outcomes and transcripts as JSON values.

    Args:
      step: of the model's checkpoint; 0: the base model.
      name: of the model, for the progress bar; "": no progress bar.
      partial_folder: for the dialogues of an unfinished measurement of this model by this
        protocol; None: they are not saved.
    """
    config = programs.settings.evaluation
    greedy = greedy_sampling(programs.settings)
    modes = {"greedy": greedy}
    if config.samples:
        modes["sampled"] = dataclasses.replace(
            greedy, group_size=config.samples, temperature=config.temperature
        )
    measured: dict[str, Any] = {"step": step, "outcomes": {}}
    for mode, sampling in modes.items():
        records = sample_attempts(
            programs,
            params,
            asked,
            grader,
            sampling=sampling,
            step=step,
            partial_file=partial_folder and partial_folder / f"{mode}.jsonl",
            label=f"{name} {mode}".strip(),
        )
        attempts = with_one_spelling(
            metrics.group_attempts(records), [asked.tasks[p.task] for p in asked.problems], grader
        )
        measured["outcomes"][mode] = metrics.outcomes(attempts)
        measured[mode] = as_json(metrics.measure(attempts, seed=config.seed))
        if len(asked.by_task) > 1:
            measured.setdefault("by_task", {})[mode] = {
                name: as_json(metrics.measure(attempts.select(own), seed=config.seed))
                for name, own in asked.by_task.items()
            }
        if mode == "sampled":
            measured["scaling"] = scaling_of(attempts, programs.settings.measured_plan, config.seed)
        if mode == "greedy":
            edges, counts = (
                metrics.edit_distance_histogram(attempts.texts) if config.turns > 1 else ([], [])
            )
            measured["histogram"] = {
                "edges": list(map(float, edges)),
                "counts": list(map(int, counts)),
            }
            measured["transcripts"] = [
                dataclasses.asdict(record) for record in records[:MAX_TRANSCRIPTS]
            ]
    return measured


def scaling_of(attempts: metrics.Attempts, plan: DialoguePlan, seed: int) -> dict[str, Any]:
    """Votes and passes by samples per problem, as JSON values; empty where turn 1 is not drawn."""
    pairs = zip(plan.sources, plan.roles, strict=True)
    answers = [turn for turn, pair in enumerate(pairs, 1) if pair == ("sampled", "answer")]
    if 1 not in answers:
        return {}
    drawn = sum(turn <= answers[-1] for turn in plan.drawn)
    found = scaling.measure_scaling(attempts, seed=seed, answers=answers, drawn=drawn)
    return {str(budget): as_json(values) for budget, values in found.items()}


def as_json(values: Mapping[str, Interval | None]) -> dict[str, Any]:
    """Intervals as JSON values."""
    return {key: value and dataclasses.asdict(value) for key, value in values.items()}


def with_one_spelling(
    attempts: metrics.Attempts, tasks: Sequence[Task], grader: Grader
) -> metrics.Attempts:
    """Replaces equal answers to a problem (1/2 and 0.5) by one spelling; all hosts must call.

    Majority votes and the counts of changed answers compare text. The first host's grader
    decides for all hosts.

    Args:
      tasks: one per problem.
    """
    spelled: list[Any] = [None] * len(tasks)
    for task in {task.name: task for task in tasks if processes.is_first()}.values():
        own = [index for index, other in enumerate(tasks) if other.name == task.name]
        answers = one_spelling(
            lambda items, name=task.name: grader.submit(name, items, ()).result(),
            task,
            [
                list(zip(attempts.extracted[n].flat, attempts.verdicts[n].flat, strict=True))
                for n in own
            ],
        )
        for index, spelling in zip(own, answers, strict=True):
            spelled[index] = spelling
    extracted = np.array(processes.broadcast_from_first(spelled), object)
    return dataclasses.replace(attempts, extracted=extracted.reshape(attempts.extracted.shape))


def evaluation_protocol(programs: StagePrograms, asked: ProblemSet) -> dict[str, Any]:
    """The protocol of a stage's evaluation; equal protocols give comparable numbers."""
    encoder = encoder_of(programs, asked)
    return protocols.describe(programs, encoder, asked.problems, greedy_sampling(programs.settings))


def validate(
    programs: StagePrograms, params: Params, asked: ProblemSet, grader: Grader, *, step: int
) -> dict[str, float]:
    """Greedy accuracy of each turn on validation problems, by metric name."""
    sampling = greedy_sampling(programs.settings)
    records = sample_attempts(programs, params, asked, grader, sampling=sampling, step=step)
    accuracy = np.mean([[verdict == "correct" for verdict in r.verdicts] for r in records], axis=0)
    return {f"validation/accuracy/turn{n}": float(share) for n, share in enumerate(accuracy, 1)}


def write_evaluation(
    path: Path,
    programs: StagePrograms,
    models: dict[str, dict[str, Any]],
    *,
    step: int,
    protocol: dict[str, Any],
    reference: int,
    left_out: dict[str, tuple[str, ...]],
    lost: dict[str, str] | None = None,
    selection: dict[str, Any] | None = None,
) -> None:
    """Writes a stage's evaluation.json, or the same for another task.

    Args:
      models: results of `measure_model` by the model's name.
      step: of the stage's checkpoint.
      protocol: from `evaluation_protocol`.
      reference: checksum of the base model's parameters.
      left_out: ids of problems left out, by reason.
      lost: from `Encoder.lost`.
      selection: from `handoff.describe_selection`; None: of no trained checkpoint.
    """

    def pick(part: str) -> dict[str, Any]:
        return {name: values[part] for name, values in models.items() if part in values}

    value = {
        "stage": programs.settings.name,
        "step": step,
        "seed": programs.settings.evaluation.seed,
        "training_seed": programs.settings.seed,
        "task": protocol["task"],
        "data": data_source(programs.settings.measured_data),
        "problems": protocol["problems"],
        "left_out": left_out,
        "lost_characters": lost or {},
        "protocol": protocol,
        "reference": reference,
        "selection": selection or {},
        "models": {
            name: {key: values[key] for key in MEASURED if key in values}
            for name, values in models.items()
        },
        "outcomes": pick("outcomes"),
        "histogram": pick("histogram"),
        "transcripts": pick("transcripts"),
    }
    write_json(path, value)


def read_measurements(
    path: Path, protocol: dict[str, Any], reference: int
) -> dict[str, dict[str, Any]]:
    """Reads the measurements in another stage's evaluation.json.

    Args:
      path: of the file.
      reference: checksum of the base model's parameters.

    Returns:
      Results as of `measure_model` by the model's name; empty if protocol or base model
      differ, or there is no evaluation.json.
    """
    saved = processes.broadcast_from_first(read_json(path))
    if saved is None or saved.get("protocol") != protocol or saved.get("reference") != reference:
        return {}
    return {
        name: values
        | {part: saved[part][name] for part in ("outcomes", "histogram", "transcripts")}
        for name, values in saved["models"].items()
        if "scaling" in values or "sampled" not in values  # else of an earlier version
    }


def summary_line(name: str, measured: dict[str, Any]) -> str:
    """Formats a model's greedy accuracies and delta, and what correcting adds to votes, in percent.

    The latter is of the largest budget, from NAMED_SAMPLES on.
    """
    greedy = measured["greedy"]
    turns = [turn for turn in range(1, 11) if greedy.get(f"accuracy/turn{turn}")]
    parts = [
        "accuracy "
        + ", ".join(
            f"t{turn} {100 * greedy[f'accuracy/turn{turn}']['value']:.1f}" for turn in turns
        )
    ]
    if delta := greedy.get("delta"):
        parts.append(f"delta {signed(delta)}")
    budget = max(map(int, measured.get("scaling") or {}), default=0)
    if budget >= NAMED_SAMPLES and (gain := measured["scaling"][str(budget)].get("gain")):
        parts.append(f"votes of {budget} samples gain {signed(gain)} in sequence")
    return f"{name}: {', '.join(parts)}"


def signed(interval: Mapping[str, float]) -> str:
    """Formats a difference and its interval in percentage points."""
    value, low, high = (100 * interval[bound] for bound in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
