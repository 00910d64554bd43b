"""The works as score_jax does them, with the programs that training runs.

PYTHONPATH says which checkout is measured. One whose sampler reads no `Prompts.turn_limits` has
the lengths of its turns forced from outside.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from protocol import Run, serve

from configs import common
from score_jax.rl import sampling
from score_jax.rl.dialogue import row_ids
from score_jax.rl.keys import run_key
from score_jax.stages.build import StagePrograms, build, load_reference
from score_jax.stages.settings import parse
from score_jax.types import Episodes, Prompts

NEVER = -1  # no token: turns end at their lengths alone
FIRST_WORD = 256  # ids below are those of markers
READS_LENGTHS = "turn_limits" in Prompts.__annotations__
ADVANCE: Any = getattr(sampling, "advance", None)  # of trees before lengths could be given


def stage(work: dict[str, Any]) -> StagePrograms:
    """The programs of a stage that does this work."""
    config: Any = common.get_config()
    turns, rows = len(work["limits"]), work["problems"] * work["group"]
    config.update({"name": "speed", "batch": work["problems"]})
    config.model = ConfigDict(work["model"])
    config.weights.source, config.tokenizer.source = "random", "stand_in"
    config.compute.dtype = work["dtype"]
    config.sampling.update(
        group_size=work["group"], prompt_limit=work["prompt"], turn_limit=work["limits"][0],
        row_limit=0,
    )  # fmt: skip
    config.dialogue.limits = tuple(work["limits"])
    config.objective.update(reward_weights=(1.0,) * turns, beta=(0.01,) * turns)
    config.estimator.update(kl="k2", baseline="batch")
    config.learner.microbatches = max(1, rows // (work["microbatch"] or rows))
    return build(parse(config))


def prompts(work: dict[str, Any]) -> Prompts:
    """Random prompts and instructions of the stated lengths."""
    rng, count, turns = np.random.default_rng(0), work["problems"], len(work["limits"])
    between = 1 + work["instruction"]  # a stop token that a cut turn lacks, the instruction
    forced = rng.integers(FIRST_WORD, work["model"]["vocab_size"], (count, turns, between))
    columns: dict[str, Any] = {
        "tokens": rng.integers(
            FIRST_WORD, work["model"]["vocab_size"], (count, work["prompt"]), np.int32
        ),
        "turn": np.zeros((count, work["prompt"]), np.int32),
        "length": np.full(count, work["prompt"], np.int32),
        "forced": forced.astype(np.int32),
        "forced_turn": np.zeros((count, turns, between), np.int32),
        "forced_length": np.tile(np.int32([0] + [between] * (turns - 1)), (count, 1)),
        "present": np.ones((count, turns), bool),
        "drawn": np.ones((count, turns), bool),
        "trained": np.ones((count, turns), bool),
        "ids": row_ids(np.arange(count), np.arange(count)),
    }
    if READS_LENGTHS:
        shape = (count, work["group"], turns)
        columns["turn_limits"] = np.asarray(work["lengths"], np.int32).reshape(shape)
    return Prompts(**columns)


def rollout(work: dict[str, Any]) -> Run:
    """Draws all dialogues."""
    programs = stage(work)
    settings = programs.settings
    if READS_LENGTHS:
        sample = programs.make_sampler(settings.sampling, settings.plan, stops=(NEVER,))
    else:
        own = np.asarray(work["lengths"], np.int32)
        vars(sampling)["advance"] = partial(outside, own)
        sample = programs.sample(settings.sampling, settings.plan)
    params = programs.for_sampling(load_reference(programs))
    rows, key = programs.to_global(prompts(work)), run_key(0, "train")

    def run() -> dict[str, float]:
        found = jax.block_until_ready(sample(params, rows, key))
        episodes = found if isinstance(found, Episodes) else found[0]
        drawn = np.asarray(episodes.sampled).sum()
        expected = int(np.sum(work["lengths"]))
        assert drawn == expected, f"{drawn} tokens drawn, not {expected}"
        return {"tokens": float(drawn)}

    return run


def outside(lengths: np.ndarray, *arguments: Any, **options: Any) -> Any:
    """`sampling.advance` with limits per row, and without stop tokens."""
    return ADVANCE(*arguments, **options | {"stops": (NEVER,), "limits": lengths})


def episodes(work: dict[str, Any]) -> Episodes:
    """Random dialogues of the stated lengths, with rewards."""
    rng, lengths = np.random.default_rng(0), np.asarray(work["lengths"])
    turns, count = len(work["limits"]), len(lengths)
    width = work["prompt"] + sum(work["limits"]) + (turns - 1) * work["instruction"]
    turn, length = np.zeros((count, width), np.int32), np.zeros(count, np.int32)
    for row, own in enumerate(lengths):
        at = work["prompt"]
        for number, drawn in enumerate(own, 1):
            turn[row, at : at + drawn] = number
            length[row], at = at + drawn, at + drawn + work["instruction"]
    tokens = rng.integers(FIRST_WORD, work["model"]["vocab_size"], turn.shape)
    problem = np.arange(count) // work["group"]
    columns: dict[str, Any] = {
        "tokens": tokens.astype(np.int32),
        "length": length,
        "turn": turn,
        "sampled": turn > 0,
        "trained": turn > 0,
        "logprobs": np.where(turn > 0, -np.log(work["model"]["vocab_size"]), 0.0).astype("f"),
        "present": np.ones((count, turns), bool),
        "truncated": np.zeros((count, turns), bool),
        "rewards": rng.integers(0, 2, (count, turns)).astype("f"),
        "ids": row_ids(problem, problem, np.arange(count) % work["group"]),
    }
    return Episodes(**columns)


def learn(work: dict[str, Any]) -> Run:
    """Reference scores of dialogues, or an update on them."""
    programs = stage(work)
    reference = load_reference(programs)
    own = episodes(work)
    rows, whole = programs.to_global(own), float(np.sum(own.length))
    scores = jax.block_until_ready(programs.score(reference, rows))
    if work["kind"] == "score":

        def score() -> dict[str, float]:
            jax.block_until_ready(programs.score(reference, rows))
            return {"tokens": whole}

        return score
    state = programs.init_state(load_reference(programs))

    def update() -> dict[str, float]:
        nonlocal state
        state, found = jax.block_until_ready(programs.update(state, reference, rows, scores))
        assert np.isfinite(found["loss"].total), "the loss is not finite"
        return {"tokens": whole}

    return update


def prepare(work: dict[str, Any]) -> Run:
    """The program of a work, run once, since that compiles it."""
    run = rollout(work) if work["kind"] == "rollout" else learn(work)
    run()
    return run


if __name__ == "__main__":
    serve(prepare)
