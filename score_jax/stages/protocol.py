"""The evaluation protocol: what must be equal for two evaluations to be comparable.

It covers everything that affects prompts, sampling or grading. Data enter as hashes of
their contents, not as paths: a moved file is the same data, an edited file is not.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from score_jax.records import Problem
from score_jax.rl.sampling import SamplingConfig
from score_jax.stages.build import StagePrograms
from score_jax.stages.identity import fingerprint_problems


def digest(parts: Iterable[Any]) -> str:
    """The first 64 bits of SHA-256 over JSON values in order, in hexadecimal."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return hasher.hexdigest()[:16]


def describe(
    programs: StagePrograms, problems: Sequence[Problem], sampling: SamplingConfig
) -> dict[str, Any]:
    """The evaluation protocol of a stage's models, as it is stored in evaluation.json.

    Args:
      sampling: of greedy decoding; sampled dialogues differ from it in `group_size` and
        `temperature` only, which the protocol takes from the evaluation's config.
    """
    config, chat, task = programs.settings.evaluation, programs.chat, programs.measured_task
    template = programs.turn_template(config.turns, task)
    protocol: dict[str, Any] = {
        "task": task.name,
        "problems": len(problems),
        "contents": fingerprint_problems(problems),
        "prompts": digest(chat.encode_prompt(task.ask(problem)) for problem in problems),
        "chat": programs.settings.tokenizer.chat,
        "instruction": task.instruction,
        "script": digest(asdict(template).items()),
        "turns": config.turns,
        "samples": config.samples,
        "temperature": config.temperature,
        "seed": config.seed,
        "prompt_limit": sampling.prompt_limit,
        "turn_limit": sampling.turn_limit,
        "row_limit": template.row_length(sampling),
        "dtype": programs.decoder.config.dtype,
        "deadline_seconds": programs.settings.grading.deadline_seconds,
    }
    return {"hash": digest(protocol.items())} | protocol
