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
from score_jax.rl.dialogue import Encoder
from score_jax.rl.sampling_plan import SamplingConfig
from score_jax.stages.build import StagePrograms
from score_jax.stages.identity import fingerprint_problems


def digest(parts: Iterable[Any]) -> str:
    """The first 64 bits of SHA-256 over JSON values in order, in hexadecimal."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return hasher.hexdigest()[:16]


def describe(
    programs: StagePrograms,
    encoder: Encoder,
    problems: Sequence[Problem],
    sampling: SamplingConfig,
) -> dict[str, Any]:
    """The evaluation protocol of a stage's models, as it is stored in evaluation.json.

    Args:
      encoder: of the problems, with the evaluation's plan.
      sampling: of greedy decoding; sampled dialogues differ from it in `group_size` and
        `temperature` only, which the protocol takes from the evaluation's config.
    """
    config = programs.settings.evaluation
    thinking = encoder.chat.format.thinking
    forced = [encoder.forced[name] for name in sorted(encoder.tasks)]
    protocol: dict[str, Any] = {
        "task": ", ".join(sorted({task.name for task in encoder.tasks.values()})),
        "problems": len(problems),
        "contents": fingerprint_problems(problems),
        "prompts": digest(encoder.opening(problem)[0] for problem in problems),
        "chat": programs.settings.tokenizer.chat,
        **({"thinking": thinking} if thinking else {}),  # absent where all of a turn is graded
        "instruction": " | ".join(
            dict.fromkeys(
                own or task.instruction
                for task in encoder.tasks.values()
                for own in encoder.plan.instructions[1:]
            )
        ),
        "script": digest([*asdict(encoder.plan).items(), forced, encoder.chat.stops]),
        "turns": config.turns,
        "samples": config.samples,
        "temperature": config.temperature,
        "seed": config.seed,
        "prompt_limit": sampling.prompt_limit,
        "turn_limit": sampling.turn_limit,
        "row_limit": encoder.row_length(sampling.row_limit),
        "dtype": programs.decoder.config.dtype,
        "deadline_seconds": programs.settings.grading.deadline_seconds,
    }
    return {"hash": digest(protocol.items())} | protocol
