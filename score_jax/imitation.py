"""Worked dialogues as rows for supervised training: pre-training, STaR, Pair-SFT."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from score_jax.data.procedural import Dialogue
from score_jax.records import Problem, Task
from score_jax.sampling import Script
from score_jax.text.chat import Chat
from score_jax.types import Episodes


def encode_dialogue(
    chat: Chat, script: Script, prompt: str, dialogue: Dialogue
) -> tuple[list, list]:
    """Token ids of a dialogue, and the turn of each token that is learnt (0: not learnt)."""
    ids = chat.encode_prompt(prompt)
    turns = [0] * len(ids)
    for number, parts in enumerate(dialogue.attempts, 1):
        if number > 1:
            ids += script.instruction
            turns += [0] * len(script.instruction)
        for part in parts:
            piece = chat.tokenizer.encode(part.text)
            ids += piece
            turns += [number if part.learn else 0] * len(piece)
        ids.append(script.stops[0])
        turns.append(number if parts[-1].learn else 0)
    return ids, turns


def encode_dialogues(
    chat: Chat, task: Task, script: Script, dialogues: Sequence[Dialogue], length: int
) -> Episodes:
    """Rows of supervised training; log-probabilities and rewards are 0.

    Raises:
      ValueError: a dialogue is longer than a row.
    """
    count = len(dialogues)
    tokens, turn = np.zeros((2, count, length), np.int32)
    lengths = np.zeros(count, np.int32)
    for row, dialogue in enumerate(dialogues):
        problem = Problem(id="", prompt=dialogue.prompt)
        ids, turns = encode_dialogue(chat, script, task.ask(problem), dialogue)
        if len(ids) > length:
            raise ValueError(
                f"sampling.prompt_limit and turn_limit allow {length} tokens; a dialogue on "
                f"{dialogue.prompt!r} has {len(ids)}: raise them"
            )
        tokens[row, : len(ids)], turn[row, : len(ids)] = ids, turns
        lengths[row] = len(ids)
    columns: dict[str, Any] = {  # numpy until they are made global
        "tokens": tokens,
        "length": lengths,
        "turn": turn,
        "logprobs": np.zeros((count, length), np.float32),
        "truncated": np.zeros((count, script.turns), bool),
        "draw": np.zeros(count, np.int32),
        "rewards": np.zeros((count, script.turns), np.float32),
    }
    return Episodes(**columns)
