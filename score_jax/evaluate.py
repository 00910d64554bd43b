"""Measures self-correction on held-out problems: greedy and sampled, base and trained.

All models of a chain are measured on the same problems with the same keys, and a
parent's numbers are taken over where they were made by the same protocol.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from score_jax import hosts, metrics
from score_jax.build import Built
from score_jax.files import read_json, write_json
from score_jax.keys import run_key
from score_jax.records import LOST, Problem, Transcript
from score_jax.rollout import Grader, encode_prompts, grade_rollout, reward_array, transcripts
from score_jax.sampling import SamplingConfig
from score_jax.sharding import local_rows, own_rows, row_shards
from score_jax.types import Episodes, Params

SHOWN = 40  # dialogues per model that evaluation.json keeps for the report


def first_rows(episodes: Episodes, count: int) -> Episodes:
    """Leaves out the rows that only filled a batch up."""
    return jax.tree.map(lambda x: x[:count], episodes)


def attempts_of(
    built: Built,
    params: Params,
    problems: Sequence[Problem],
    grader: Grader,
    *,
    sampling: SamplingConfig,
    step: int,
) -> list[Transcript]:
    """Every dialogue of a model on the given problems, problem by problem.

    Each host encodes and grades its own rows; all get everything.
    """
    config = built.settings.evaluation
    task, params = built.measured_task, built.for_sampling(params)
    program = built.sample(sampling, config.turns, task)
    shards = row_shards(built.mesh)
    batch = -(-min(config.batch, len(problems)) // shards) * shards
    key = run_key(config.seed, "evaluate")
    records: list[Transcript] = []
    for start in range(0, len(problems), batch):
        places = start + own_rows(built.mesh, batch)
        part = [problems[place] for place in places if place < len(problems)]
        padded = part + [problems[start]] * (len(places) - len(part))
        prompts = encode_prompts(built.chat, task, places, padded, sampling.prompt_limit)
        episodes = local_rows(program(params, built.to_global(prompts), key))
        found: list[Transcript] = []
        if part:
            kept = first_rows(episodes, len(part) * sampling.samples)
            graded = grade_rollout(built.chat, task, grader, part, kept)
            kept = kept.replace(rewards=reward_array(graded.grades))
            rows = range(len(graded.attempts))
            found = transcripts(task, part, kept, graded, step=step, rows=rows)
        records += in_order(hosts.gather((places.tolist(), found)), sampling.samples)
    return records


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
    return sum(verdict in LOST for verdict in record.verdicts)


def measure_model(
    built: Built, params: Params, problems: Sequence[Problem], grader: Grader, *, step: int
) -> dict[str, Any]:
    """All measurements of one model, ready for evaluation.json."""
    config, sampling = built.settings.evaluation, built.settings.sampling
    greedy = dataclasses.replace(sampling, samples=1, branches=1, temperature=0.0)
    if config.turns > built.settings.objective.turns:  # the row limit is for those of training
        greedy = dataclasses.replace(greedy, row_limit=0)
    ways = {"greedy": greedy}
    if config.samples:
        ways["sampled"] = dataclasses.replace(
            greedy, samples=config.samples, temperature=config.temperature
        )
    found: dict[str, Any] = {"step": step}
    for name, sampling in ways.items():
        records = attempts_of(built, params, problems, grader, sampling=sampling, step=step)
        attempts = metrics.gather(records)
        values = metrics.measure(attempts, seed=config.seed)
        found[name] = {key: value and dataclasses.asdict(value) for key, value in values.items()}
        if name == "greedy":
            edges, counts = (
                metrics.edit_distance_histogram(attempts.texts) if config.turns > 1 else ([], [])
            )
            found["histogram"] = {
                "edges": list(map(float, edges)),
                "counts": list(map(int, counts)),
            }
            found["transcripts"] = [dataclasses.asdict(record) for record in records[:SHOWN]]
    return found


def protocol(built: Built, problems: Sequence[Problem]) -> dict[str, Any]:
    """What must be equal for two evaluations to be comparable."""
    config = built.settings.evaluation
    return {
        "task": built.measured_task.name,
        "problems": len(problems),
        "first_problem": problems[0].id,
        "turns": config.turns,
        "samples": config.samples,
        "temperature": config.temperature,
        "seed": config.seed,
        "turn_limit": built.settings.sampling.turn_limit,
    }


def write_evaluation(
    path: Path,
    built: Built,
    models: dict[str, dict[str, Any]],
    problems: Sequence[Problem],
    *,
    step: int,
) -> None:
    """Writes evaluation.json of a stage, or its like for another task."""

    def pick(part: str) -> dict[str, Any]:
        return {name: found[part] for name, found in models.items() if part in found}

    value = {
        "stage": built.settings.name,
        "step": step,
        "seed": built.settings.evaluation.seed,
        "training_seed": built.settings.seed,
        "task": built.measured_task.name,
        "problems": len(problems),
        "protocol": protocol(built, problems),
        "models": {
            name: {key: found[key] for key in ("step", "greedy", "sampled") if key in found}
            for name, found in models.items()
        },
        "histogram": pick("histogram"),
        "transcripts": pick("transcripts"),
    }
    write_json(path, value)


def known_models(
    folder: Path, built: Built, problems: Sequence[Problem]
) -> dict[str, dict[str, Any]]:
    """Measurements that a parent stage has made by the same protocol."""
    found = hosts.from_first(read_json(folder / "evaluation.json"))
    if found is None or found.get("protocol") != protocol(built, problems):
        return {}
    return {
        name: values
        | {"histogram": found["histogram"][name], "transcripts": found["transcripts"][name]}
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
