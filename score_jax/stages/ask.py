"""Interactive mode: prints a model's attempts at one problem while they are decoded.

One dialogue on one process, token by token. The KV cache is carried from turn to turn as
in training. Prompt and instruction are prefilled in blocks of a fixed length, so that
two programs are compiled (a block and a single token) for prompts of any length.
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

BLOCK = 64  # tokens of a prefill block

RESET, FAINT, REMOVED, ADDED = "\x1b[0m", "\x1b[2m", "\x1b[31;9m", "\x1b[32m"


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def feed(
    decoder: Decoder, params: Params, tokens: jax.Array, start: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Prefills one block; returns next-token logits [T, V] and the cache with the block in it."""
    positions = start[:, None] + jnp.arange(tokens.shape[1])

    def run(model: Decoder) -> tuple[jax.Array, Cache]:
        hidden, new = model(tokens, positions, cache)
        return model.logits(hidden), new

    outputs: Any = decoder.apply({"params": params}, method=run)
    logits, new = outputs
    return logits[0], write_cache(cache, new, start)


@dataclass
class InteractiveDialogue:
    """Decoding state of one dialogue: KV cache, length, and logits of the next token."""

    decoder: Decoder
    params: Params
    slots: int  # capacity of the cache, in tokens
    length: int = 0  # tokens written to the cache
    logits: Any = None  # of the next token
    cache: Any = field(default=None, repr=False)

    def __post_init__(self):
        config = self.decoder.config
        shape = (config.layers, 1, config.kv_heads, self.slots, config.head_dim)
        zeros = jnp.zeros(shape, jnp.dtype(config.dtype))
        self.cache = Cache(keys=zeros, values=jnp.copy(zeros))

    def read(self, ids: Sequence[int]) -> None:
        """Appends tokens to the dialogue and updates cache, length and logits."""
        width = 1 if len(ids) == 1 else BLOCK
        for offset in range(0, len(ids), width):
            block = ids[offset : offset + width]
            # Padding lies behind the dialogue's end: the causal mask hides it until later
            # tokens overwrite it.
            tokens = np.zeros((1, width), np.int32)
            tokens[0, : len(block)] = block
            start = jnp.asarray([self.length])
            logits, self.cache = feed(
                self.decoder, self.params, jnp.asarray(tokens), start, self.cache
            )
            self.logits = logits[len(block) - 1]
            self.length += len(block)

    def draw(
        self, key: jax.Array, turn: int, *, stops: Sequence[int], limit: int, temperature: float
    ) -> Iterator[int]:
        """Samples one turn and yields its tokens, without the stop token that ends it.

        Args:
          key: the sampling key of this row, from `keys.row_keys`.
          turn: number of the turn, from 1.
          limit: most tokens of the turn.
          temperature: 0 decodes greedily.
        """
        for _ in range(limit):
            if temperature == 0:
                token = int(jnp.argmax(self.logits))
            else:
                (token_key,) = token_keys(key, key, jnp.asarray([turn]), jnp.asarray([self.length]))
                token = int(jax.random.categorical(token_key, self.logits / temperature))
            self.read([token])
            if token in stops:
                return
            yield token
        self.read([stops[0]])  # a truncated turn is closed by a stop token, as in training


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
    """Runs one dialogue and writes attempts, instruction and the diff between attempts.

    Args:
      prompt: the problem's text, in the form that the task's data sets use.
      temperature: 0 decodes greedily.
      write: receives the text piece by piece.
      colour: mark the diff by terminal colours instead of brackets.

    Returns:
      The text of each attempt.
    """
    settings, chat = programs.settings, programs.chat
    limit, turns = settings.sampling.turn_limit, settings.evaluation.turns
    problem = Problem(id="ask", prompt=prompt)
    task = registry.of_problems([problem], settings.task)
    prompt_ids = chat.encode_prompt(task.ask(problem))
    instruction_ids = chat.encode_instruction(task.instruction)
    slots = len(prompt_ids) + turns * (limit + 1) + (turns - 1) * len(instruction_ids) + BLOCK
    attempts: list[str] = []
    with jax.set_mesh(programs.mesh), nn.logical_axis_rules(TRAIN_RULES):
        dialogue = InteractiveDialogue(programs.decoder, params, slots)
        key, _ = row_keys(run_key(seed, "ask"), jnp.zeros(1, jnp.int32), group_size=1)
        for turn in range(1, turns + 1):
            dialogue.read(prompt_ids if turn == 1 else instruction_ids)
            if turn > 1:
                write(f"\n{faint(task.instruction, colour)}\n")
            write(f"\n{faint(f'attempt {turn}', colour)}\n")
            tokens = dialogue.draw(
                key, turn, stops=chat.stops, limit=limit, temperature=temperature
            )
            attempts.append(stream(tokens, chat.decode, write))
    for before, after in itertools.pairwise(attempts):
        write(f"\n{faint('change', colour)}\n{mark_change(before, after, colour=colour)}\n")
    return attempts


def stream(
    tokens: Iterator[int], decode: Callable[[Sequence[int]], str], write: Callable[[str], Any]
) -> str:
    """Decodes and writes tokens as they arrive, whole characters only; returns the text."""
    ids: list[int] = []
    written = ""
    for token in tokens:
        ids.append(token)
        text = decode(ids)
        # U+FFFD at the end: the bytes of a character are split over this token and the next.
        if not text.endswith("\ufffd") and text.startswith(written):
            write(text[len(written) :])
            written = text
    text = decode(ids)
    write(text.removeprefix(written) + "\n")
    return text


def faint(text: str, colour: bool) -> str:
    """Formats a heading: dimmed by terminal codes, or behind two dashes."""
    return f"{FAINT}{text}{RESET}" if colour else f"-- {text}"


def mark_change(before: str, after: str, *, colour: bool = False) -> str:
    """Word-level diff: the second text with removals as [-text-] and additions as {+text+}."""
    if before == after:
        return "(none: the attempts are equal)"
    old, new = split_words(before), split_words(after)
    parts: list[str] = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        removed, added = "".join(old[a:b]), "".join(new[c:d])
        if kind == "equal":
            parts.append(added)
            continue
        if removed:
            parts.append(f"{REMOVED}{removed}{RESET}" if colour else f"[-{removed}-]")
        if added:
            parts.append(f"{ADDED}{added}{RESET}" if colour else f"{{+{added}+}}")
    return "".join(parts)


def split_words(text: str) -> list[str]:
    """Splits into words, numbers, single symbols and runs of white space, losing nothing."""
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def interact(programs: StagePrograms, params: Params, prompt: str, **options: Any) -> None:
    """Answers `prompt`, or if it is empty, prompts typed on the terminal until an empty line.

    Raises:
      ValueError: `prompt` is empty and standard input is no terminal.
    """
    colour = sys.stdout.isatty()

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    if prompt:
        ask(programs, params, prompt, write=write, colour=colour, **options)
        return
    if not sys.stdin.isatty():
        raise ValueError("--prompt is empty and standard input is no terminal; set --prompt")
    while prompt := input("\nproblem> ").strip():
        ask(programs, params, prompt, write=write, colour=colour, **options)
