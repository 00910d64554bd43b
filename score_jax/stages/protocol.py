"""What two evaluations must have in common before their numbers may stand side by side.

All that reaches a prompt, the sampler or the grader: as contents, not as names, so that
a moved file is the same data and an edited one is not.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from score_jax.records import Problem
from score_jax.rl.sampling import SamplingConfig
from score_jax.stages.build import StagePrograms
from score_jax.stages.identity import of_problems


def digest(parts: Iterable[Any]) -> str:
    """A short hash of JSON values, in order."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return whole.hexdigest()[:16]


def describe(
    programs: StagePrograms, problems: Sequence[Problem], sampling: SamplingConfig
) -> dict[str, Any]:
    """The protocol by which a stage's models are measured.

    Args:
      sampling: of the greedy part; what else is drawn differs in samples and temperature.
    """
    config, chat, task = programs.settings.evaluation, programs.chat, programs.measured_task
    script = programs.turn_template(config.turns, task)
    found: dict[str, Any] = {
        "task": task.name,
        "problems": len(problems),
        "contents": of_problems(problems),
        "prompts": digest(chat.encode_prompt(task.ask(problem)) for problem in problems),
        "chat": programs.settings.tokenizer.chat,
        "instruction": task.instruction,
        "script": digest(asdict(script).items()),
        "turns": config.turns,
        "samples": config.samples,
        "temperature": config.temperature,
        "seed": config.seed,
        "prompt_limit": sampling.prompt_limit,
        "turn_limit": sampling.turn_limit,
        "row_limit": script.row_length(sampling),
        "dtype": programs.decoder.config.dtype,
        "deadline_seconds": programs.settings.grading.deadline_seconds,
    }
    return {"hash": digest(found.items())} | found
