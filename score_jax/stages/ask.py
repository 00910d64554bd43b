"""Interactive mode: a model's attempts at a problem, with the changes between them.

The dialogue is drawn by the sampling program of evaluation, for one problem.
"""

import dataclasses
import difflib
import itertools
import re
import sys
from collections.abc import Callable
from typing import Any

from score_jax.distributed.sharding import local_rows, row_shards
from score_jax.records import Problem
from score_jax.rl.keys import run_key
from score_jax.rl.rollout import attempt_texts
from score_jax.stages.build import StagePrograms, greedy_sampling
from score_jax.tasks import registry
from score_jax.types import Params

BLOCK = 64  # prompts are padded to multiples of it, so that few programs are compiled

RESET, FAINT, REMOVED, ADDED = "\x1b[0m", "\x1b[2m", "\x1b[31;9m", "\x1b[32m"


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
    settings, plan = programs.settings, programs.settings.measured_plan
    problem, task = Problem(id="ask", prompt=prompt), registry.get(settings.task)
    length = len(programs.chat.encode_prompt(task.ask(problem)))
    encoder = programs.encoder(plan, -(-length // BLOCK) * BLOCK, {"": task})
    sampling = dataclasses.replace(greedy_sampling(settings), temperature=temperature, row_limit=0)
    shards = row_shards(programs.mesh)  # each draws the same dialogue
    prompts = programs.to_global(encoder.prompts([problem] * shards, [0] * shards))
    sample = programs.sample(sampling, plan)
    episodes = local_rows(sample(programs.for_sampling(params), prompts, run_key(seed, "ask")))
    attempts = list(attempt_texts(programs.chat, episodes)[0])
    for turn, attempt in enumerate(attempts, 1):
        if turn > 1:
            instruction = plan.instructions[turn - 1] or task.instruction
            write(f"\n{faint(instruction, colour)}\n")
        write(f"\n{faint(f'attempt {turn}', colour)}\n{attempt}\n")
    for before, after in itertools.pairwise(attempts):
        write(f"\n{faint('change', colour)}\n{mark_change(before, after, colour=colour)}\n")
    return attempts


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
