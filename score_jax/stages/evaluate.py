"""Measures self-correction on held-out problems: greedy and sampled, base and trained.

All models of a chain are measured on the same problems with the same keys, and a
parent's numbers are taken over where they were made by the same protocol.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from score_jax.distributed import processes
from score_jax.distributed.sharding import local_rows, own_rows, row_shards
from score_jax.records import UNGRADED, Problem, Task, Transcript
from score_jax.report import metrics
from score_jax.report.json_files import read_json, write_json
from score_jax.rl.keys import run_key
from score_jax.rl.rollout import Grader, encode_prompts, grade_rollout, reward_array, transcripts
from score_jax.rl.sampling import SamplingConfig
from score_jax.stages import protocol as protocols
from score_jax.stages import saved_evaluation
from score_jax.stages.build import StagePrograms, greedy_sampling
from score_jax.stages.settings import Settings
from score_jax.tasks.grading.agreement import one_spelling
from score_jax.types import Episodes, Params

SHOWN = 40  # dialogues per model that evaluation.json keeps for the report


def first_rows(episodes: Episodes, count: int) -> Episodes:
    """Leaves out the rows that only filled a batch up."""
    return jax.tree.map(lambda x: x[:count], episodes)


def attempts_of(
    programs: StagePrograms,
    params: Params,
    problems: Sequence[Problem],
    grader: Grader,
    *,
    sampling: SamplingConfig,
    step: int,
    task: Task | None = None,
    kept: Path | None = None,
    label: str = "",
) -> list[Transcript]:
    """Every dialogue of a model on the given problems, problem by problem.

    Each host encodes and grades its own rows; all get everything.

    Args:
      task: of the problems; None: the one that evaluation asks.
      kept: file of this measurement's dialogues; what it holds is not drawn again.
      label: what is measured, for the progress bar.
    """
    found = saved_evaluation.read(kept) if kept else {}
    if kept:
        saved_evaluation.write(kept, found)
    waiting = [place for place in range(len(problems)) if place not in found]
    config = programs.settings.evaluation
    shards = row_shards(programs.mesh)
    batch = -(-min(config.batch, len(problems)) // shards) * shards
    params, task = programs.for_sampling(params), task or programs.measured_task
    with progress_bar(programs.settings, label, len(problems), len(found)) as bar:
        for start in range(0, len(waiting), batch):
            places = waiting[start : start + batch]
            records = one_batch(
                programs,
                params,
                task,
                problems,
                grader,
                places,
                sampling=sampling,
                step=step,
                batch=batch,
            )
            if kept:
                saved_evaluation.add(kept, places, records)
            found |= dict(zip(places, records, strict=True))
            bar.update(len(places))
    return [record for place in range(len(problems)) for record in found[place]]


def progress_bar(settings: Settings, label: str, total: int, done: int) -> tqdm:
    """Problems measured so far, with the time that is left."""
    return tqdm(
        total=total,
        initial=done,
        desc=f"{settings.name}: {label}",
        unit="problem",
        disable=not (label and settings.log.progress and processes.is_first()),
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 20,
    )


def one_batch(
    programs: StagePrograms,
    params: Params,
    task: Task,
    problems: Sequence[Problem],
    grader: Grader,
    places: Sequence[int],
    *,
    sampling: SamplingConfig,
    step: int,
    batch: int,
) -> list[list[Transcript]]:
    """The dialogues of the problems at some places, in their order.

    Args:
      params: of `Built.for_sampling`.
      batch: problems that are drawn at once; where there are fewer, rows are filled up.
    """
    rows_here = own_rows(programs.mesh, batch)
    own = [places[row] for row in rows_here if row < len(places)]
    part = [problems[place] for place in own]
    missing = len(rows_here) - len(own)
    prompts = encode_prompts(
        programs.chat,
        task,
        np.asarray(own + [places[0]] * missing),
        part + [problems[places[0]]] * missing,
        sampling.prompt_limit,
    )
    config = programs.settings.evaluation
    draw, key = programs.sample(sampling, config.turns, task), run_key(config.seed, "evaluate")
    episodes = local_rows(draw(params, programs.to_global(prompts), key))
    found: list[Transcript] = []
    if part:
        kept = first_rows(episodes, len(part) * sampling.group_size)
        graded = grade_rollout(programs.chat, task, grader, part, kept)
        kept = kept.replace(rewards=reward_array(graded.grades))
        rows = range(len(graded.attempts))
        found = transcripts(task, part, kept, graded, step=step, rows=rows)
    records = in_order(processes.all_gather_objects((own, found)), sampling.group_size)
    size = sampling.group_size
    return [records[i * size : (i + 1) * size] for i in range(len(places))]


def in_order(
    parts: Sequence[tuple[Sequence[int], Sequence[Transcript]]], samples: int
) -> list[Transcript]:
    """Dialogues of all hosts, by the places of their problems; each problem once.

    Of a problem that several hosts hold, the record with the fewest answers lost in grading.
    """
    found: dict[tuple[int, int], Transcript] = {}
    for places, records in parts:
        keys = [(place, sample) for place in places for sample in range(samples)]
        # Rows that fill a batch up have no records.
        for key, record in zip(keys, records, strict=False):
            found[key] = min(found.get(key, record), record, key=lost)
    return [found[key] for key in sorted(found)]


def lost(record: Transcript) -> int:
    """How many attempts have no verdict of a grader."""
    return sum(verdict in UNGRADED for verdict in record.verdicts)


def measure_model(
    programs: StagePrograms,
    params: Params,
    problems: Sequence[Problem],
    grader: Grader,
    *,
    step: int,
    name: str = "",
    kept: Path | None = None,
) -> dict[str, Any]:
    """All measurements of one model, ready for evaluation.json.

    Args:
      name: of the model, for people.
      kept: folder of this model's dialogues by this protocol while not all are there.
    """
    config = programs.settings.evaluation
    greedy = greedy_sampling(programs.settings, config.turns)
    ways = {"greedy": greedy}
    if config.samples:
        ways["sampled"] = dataclasses.replace(
            greedy, group_size=config.samples, temperature=config.temperature
        )
    found: dict[str, Any] = {"step": step, "outcomes": {}}
    for way, sampling in ways.items():
        records = attempts_of(
            programs,
            params,
            problems,
            grader,
            sampling=sampling,
            step=step,
            kept=kept and kept / f"{way}.jsonl",
            label=f"{name} {way}".strip(),
        )
        attempts = with_one_spelling(
            metrics.group_attempts(records), programs.measured_task, grader
        )
        values = metrics.measure(attempts, seed=config.seed)
        found["outcomes"][way] = metrics.outcomes(attempts)
        found[way] = {key: value and dataclasses.asdict(value) for key, value in values.items()}
        if way == "greedy":
            edges, counts = (
                metrics.edit_distance_histogram(attempts.texts) if config.turns > 1 else ([], [])
            )
            found["histogram"] = {
                "edges": list(map(float, edges)),
                "counts": list(map(int, counts)),
            }
            found["transcripts"] = [dataclasses.asdict(record) for record in records[:SHOWN]]
    return found


def with_one_spelling(attempts: metrics.Attempts, task: Task, grader: Grader) -> metrics.Attempts:
    """Writes equal answers of a problem alike (1/2 and 0.5): one vote, and no change of answer.

    One host compares for all.
    """
    spelled = None
    if processes.is_first():
        spelled = one_spelling(
            lambda items: grader.submit(task.name, items, ()).result(),
            task,
            [
                list(zip(answers.flat, verdicts.flat, strict=True))
                for answers, verdicts in zip(attempts.extracted, attempts.verdicts, strict=True)
            ],
        )
    spelled = np.array(processes.broadcast_from_first(spelled), object).reshape(
        attempts.extracted.shape
    )
    return dataclasses.replace(attempts, extracted=spelled)


def protocol_of(programs: StagePrograms, problems: Sequence[Problem]) -> dict[str, Any]:
    """What must be equal for two evaluations to be comparable."""
    sampling = greedy_sampling(programs.settings, programs.settings.evaluation.turns)
    return protocols.describe(programs, problems, sampling)


def validate(
    programs: StagePrograms,
    params: Params,
    problems: Sequence[Problem],
    grader: Grader,
    *,
    step: int,
) -> dict[str, float]:
    """Greedy accuracy of every turn while training goes on, for the log and for selection."""
    turns = programs.settings.evaluation.turns
    sampling = greedy_sampling(programs.settings, turns)
    records = attempts_of(
        programs, params, problems, grader, sampling=sampling, step=step, task=programs.task
    )
    right = np.mean([[verdict == "correct" for verdict in r.verdicts] for r in records], axis=0)
    return {f"validation/accuracy/turn{n}": float(share) for n, share in enumerate(right, 1)}


def write_evaluation(
    path: Path,
    programs: StagePrograms,
    models: dict[str, dict[str, Any]],
    *,
    step: int,
    protocol: dict[str, Any],
    reference: int,
    left_out: dict[str, tuple[str, ...]],
    selection: dict[str, Any] | None = None,
) -> None:
    """Writes evaluation.json of a stage, or its like for another task.

    Args:
      protocol: of `protocol_of`.
      reference: checksum of the base model's parameters.
      left_out: ids of problems that were not asked, by the reason.
      selection: how the stage's checkpoint was chosen.
    """

    def pick(part: str) -> dict[str, Any]:
        return {name: found[part] for name, found in models.items() if part in found}

    value = {
        "stage": programs.settings.name,
        "step": step,
        "seed": programs.settings.evaluation.seed,
        "training_seed": programs.settings.seed,
        "task": programs.measured_task.name,
        "problems": protocol["problems"],
        "left_out": left_out,
        "protocol": protocol,
        "reference": reference,
        "selection": selection or {},
        "models": {
            name: {key: found[key] for key in ("step", "greedy", "sampled") if key in found}
            for name, found in models.items()
        },
        "outcomes": pick("outcomes"),
        "histogram": pick("histogram"),
        "transcripts": pick("transcripts"),
    }
    write_json(path, value)


def known_models(
    folder: Path, protocol: dict[str, Any], reference: int
) -> dict[str, dict[str, Any]]:
    """Measurements that a parent stage with the same base model has made by the same protocol."""
    found = processes.broadcast_from_first(read_json(folder / "evaluation.json"))
    if found is None or found.get("protocol") != protocol or found.get("reference") != reference:
        return {}
    return {
        name: values
        | {part: found[part][name] for part in ("outcomes", "histogram", "transcripts")}
        for name, values in found["models"].items()
    }


def summary_line(name: str, found: dict[str, Any]) -> str:
    """One model's greedy numbers for the terminal, in percent."""
    greedy = found["greedy"]
    text = ", ".join(
        f"{label} {100 * greedy[key]['value']:.1f}"
        for label, key in (("t1", "accuracy/turn1"), ("t2", "accuracy/turn2"))
        if greedy.get(key)
    )
    delta = greedy.get("delta")
    if not delta:
        return f"{name}: accuracy {text}"
    low, high = 100 * delta["low"], 100 * delta["high"]
    return f"{name}: accuracy {text}, delta {100 * delta['value']:+.1f} [{low:+.1f}, {high:+.1f}]"
