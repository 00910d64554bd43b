"""Shows a model's first attempt, the instruction and its second attempt, as they come.

One dialogue on one process, token by token, for people. The cache is carried from
turn to turn as in training; prompt and instruction are fed in blocks of fixed length,
so that two programs are compiled, whatever is asked.
"""

import difflib
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_jax.distributed.sharding import TRAIN_RULES
from score_jax.model.decoder import Decoder, write_cache
from score_jax.records import Problem
from score_jax.rl.keys import row_keys, run_key, token_keys
from score_jax.stages.build import StagePrograms
from score_jax.tasks import registry
from score_jax.types import Cache, Params

BLOCK = 64  # tokens of prompt or instruction that are fed at once

RESET, FAINT, GONE, NEW = "\x1b[0m", "\x1b[2m", "\x1b[31;9m", "\x1b[32m"


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def feed(
    decoder: Decoder, params: Params, tokens: jax.Array, start: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Logits behind every token of a block, and the cache with the block written."""
    positions = start[:, None] + jnp.arange(tokens.shape[1])

    def run(model: Decoder) -> tuple[jax.Array, Cache]:
        hidden, new = model(tokens, positions, cache)
        return model.logits(hidden), new

    found: Any = decoder.apply({"params": params}, method=run)
    logits, new = found
    return logits[0], write_cache(cache, new, start)


@dataclass
class AskedDialogue:
    """A row under way: its cache, its length, and the logits behind its last token."""

    decoder: Decoder
    params: Params
    slots: int  # the most tokens that it can hold
    length: int = 0
    logits: Any = None
    cache: Any = field(default=None, repr=False)

    def __post_init__(self):
        config = self.decoder.config
        shape = (config.layers, 1, config.kv_heads, self.slots, config.head_dim)
        zeros = jnp.zeros(shape, jnp.dtype(config.dtype))
        self.cache = Cache(keys=zeros, values=jnp.copy(zeros))

    def read(self, ids: Sequence[int]) -> None:
        """Takes in tokens; slots behind them hold padding, which nothing ever sees."""
        width = 1 if len(ids) == 1 else BLOCK
        for at in range(0, len(ids), width):
            part = ids[at : at + width]
            tokens = np.zeros((1, width), np.int32)
            tokens[0, : len(part)] = part
            start = jnp.asarray([self.length])
            logits, self.cache = feed(
                self.decoder, self.params, jnp.asarray(tokens), start, self.cache
            )
            self.logits = logits[len(part) - 1]
            self.length += len(part)

    def draw(
        self, key: jax.Array, turn: int, *, stops: Sequence[int], limit: int, temperature: float
    ) -> Iterator[int]:
        """Draws a turn token by token; a stop token ends it and is not given out.

        Args:
          key: of `keys.row_keys`, for one row.
        """
        for _ in range(limit):
            if temperature == 0:
                token = int(jnp.argmax(self.logits))
            else:
                places = jnp.asarray([turn]), jnp.asarray([self.length])
                (place,) = token_keys(key, key, *places)
                token = int(jax.random.categorical(place, self.logits / temperature))
            self.read([token])
            if token in stops:
                return
            yield token
        self.read([stops[0]])  # a turn that was cut is closed, as in training


def ask(
    programs: StagePrograms,
    params: Params,
    prompt: str,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    write: Callable[[str], Any] = sys.stdout.write,
    colour: bool = False,
) -> list[str]:
    """Runs one dialogue and writes it as it comes.

    Args:
      prompt: the problem, as the task's problems state theirs.
      temperature: 0 takes the likeliest token.
      colour: mark the change by terminal colours instead of brackets.

    Returns:
      The attempts.
    """
    settings, chat = programs.settings, programs.chat
    limit, turns = settings.sampling.turn_limit, settings.evaluation.turns
    problem = Problem(id="ask", prompt=prompt)
    task = registry.of_problems([problem], settings.task)
    opening = chat.encode_prompt(task.ask(problem))
    between = chat.encode_instruction(task.instruction)
    slots = len(opening) + turns * (limit + 1) + (turns - 1) * len(between) + BLOCK
    attempts: list[str] = []
    with jax.set_mesh(programs.mesh), nn.logical_axis_rules(TRAIN_RULES):
        dialogue = AskedDialogue(programs.decoder, params, slots)
        key, _ = row_keys(run_key(seed, "ask"), jnp.zeros(1, jnp.int32), group_size=1)
        for turn in range(1, turns + 1):
            dialogue.read(opening if turn == 1 else between)
            if turn > 1:
                write(f"\n{faint(task.instruction, colour)}\n")
            write(f"\n{faint(f'attempt {turn}', colour)}\n")
            drawn = dialogue.draw(key, turn, stops=chat.stops, limit=limit, temperature=temperature)
            attempts.append(stream(drawn, chat.decode, write))
    for before, after in itertools.pairwise(attempts):
        write(f"\n{faint('change', colour)}\n{mark_change(before, after, colour=colour)}\n")
    return attempts


def stream(
    tokens: Iterator[int], decode: Callable[[Sequence[int]], str], write: Callable[[str], Any]
) -> str:
    """Writes text as its tokens come; a character split over tokens waits for its end."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = decode(ids)
        if not text.endswith("\ufffd") and text.startswith(shown):
            write(text[len(shown) :])
            shown = text
    text = decode(ids)
    write(text.removeprefix(shown) + "\n")
    return text


def faint(text: str, colour: bool) -> str:
    """A heading."""
    return f"{FAINT}{text}{RESET}" if colour else f"-- {text}"


def mark_change(before: str, after: str, *, colour: bool = False) -> str:
    """The second text with what went marked [-so-] and what came {+so+}, word by word."""
    if before == after:
        return "(none: the attempts are equal)"
    old, new = words(before), words(after)
    parts: list[str] = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        gone, came = "".join(old[a:b]), "".join(new[c:d])
        if kind == "equal":
            parts.append(came)
            continue
        if gone:
            parts.append(f"{GONE}{gone}{RESET}" if colour else f"[-{gone}-]")
        if came:
            parts.append(f"{NEW}{came}{RESET}" if colour else f"{{+{came}+}}")
    return "".join(parts)


def words(text: str) -> list[str]:
    """Words, numbers, single signs and runs of white space; joined they are the text."""
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def interact(programs: StagePrograms, params: Params, prompt: str, **options: Any) -> None:
    """Answers one prompt, or on a terminal one after another until an empty line."""
    colour = sys.stdout.isatty()

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    if prompt:
        ask(programs, params, prompt, write=write, colour=colour, **options)
        return
    if not sys.stdin.isatty():
        raise ValueError("--prompt is empty and there is no terminal to ask from; set --prompt")
    while prompt := input("\nproblem> ").strip():
        ask(programs, params, prompt, write=write, colour=colour, **options)
