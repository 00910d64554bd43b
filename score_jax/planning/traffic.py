"""Estimates the HBM traffic of a compiled program from its HLO text.

Each instruction outside of a fusion reads its operands and writes its result. A slice
counts its result only, an update in place the update only, and arrays in the vector
memory count nothing. A kernel counts its operands once, though splash attention reads a row's
keys and values again for each of its blocks of queries.
"""

import re
from dataclasses import dataclass

from score_jax.planning.course import UNKNOWN, Course
from score_jax.planning.hlo import (
    Instruction,
    Module,
    array_bytes,
    called,
    inner_collectives,
    runs,
)

FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "opt-barrier",
}  # fmt: skip
SLICES = {"dynamic-slice", "slice", "gather"}


@dataclass(frozen=True)
class Traffic:
    """HBM bytes per chip."""

    once: float  # outside of the sampling loops
    in_loop: float  # inside of them; 0 for a program without


def hbm_traffic(module: Module, course: Course = UNKNOWN) -> Traffic:
    """Bytes that a program reads and writes, with loops multiplied by their trip counts."""
    once = in_loop = 0.0
    shapes = {name: {i.name: i.shape for i in body} for name, body in module.computations.items()}
    for run in runs(module, course):
        moved = run.times * instruction_bytes(module, run.instruction, shapes[run.computation])
        if run.in_loop:
            in_loop += moved
        else:
            once += moved
    return Traffic(once, in_loop)


def instruction_bytes(module: Module, one: Instruction, shapes: dict[str, str]) -> float:
    """Bytes that one instruction reads and writes."""
    kind = one.kind
    if kind in FREE or kind.endswith(("-done", "-update")):
        return 0.0
    sizes = [array_bytes(shapes.get(name, ""), hbm_only=True) for name in one.operands]
    result = array_bytes(one.shape, hbm_only=True)
    if kind.endswith("-start"):  # its result tuple includes its operand
        return max(sum(sizes), result)
    if kind in SLICES:
        return 2.0 * result
    if kind == "dynamic-update-slice":
        return 2.0 * sizes[1]
    if kind != "fusion":
        return sum(sizes) + result
    name = called(one)["calls"]
    body = module.computations[name]
    aliased: set[int] = set()
    if any(True for _ in inner_collectives(module, name)):
        # Buffers of an unfinished collective are passed through by alias, without traffic;
        # `runs` yields the collective itself.
        aliased = {int(n) for n in re.findall(r"\{\d*\}: \((\d+),", one.attributes)}
        result -= sum(sizes[index] for index in aliased)
    read = sum(
        min(size, bytes_read(module, body, index))
        for index, size in enumerate(sizes)
        if size and index not in aliased
    )
    return read + max(0.0, min(result, bytes_written(body)))


def bytes_read(module: Module, body: list[Instruction], index: int) -> float:
    """Bytes that a fusion reads of its parameter `index`; inf: all of them."""
    name = next(i.name for i in body if i.kind == "parameter" and i.operands == (str(index),))
    total = 0.0
    for user, operand in users(body, name):
        if user.kind in SLICES and operand == 0:
            total += array_bytes(user.shape)
        elif user.kind == "dynamic-update-slice" and operand == 0:
            continue  # in place: only the update is written
        elif user.kind == "fusion":
            total += bytes_read(module, module.computations[called(user)["calls"]], operand)
        else:
            return float("inf")
    return total


def users(body: list[Instruction], name: str) -> list[tuple[Instruction, int]]:
    """Instructions of a fusion that read a value, each with its operand index.

    A bitcast is replaced by the users of its result.
    """
    found: list[tuple[Instruction, int]] = []
    for one in body:
        for index, operand in enumerate(one.operands):
            if operand == name and one.kind != "parameter":
                found += users(body, one.name) if one.kind == "bitcast" else [(one, index)]
    return found


def bytes_written(body: list[Instruction]) -> float:
    """Bytes that a fusion writes; an update in place writes only the update."""
    named = {i.name: i for i in body}
    root = next(i for i in body if i.root)
    parts = root.operands if root.kind == "tuple" else (root.name,)
    total = 0.0
    for name in parts:
        one = named[name]
        while one.kind == "bitcast" and one.operands[0] in named:
            one = named[one.operands[0]]
        if one.kind == "dynamic-update-slice":
            one = named[one.operands[1]]
        total += array_bytes(one.shape)
    return total
