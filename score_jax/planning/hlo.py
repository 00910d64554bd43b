"""Parses a compiled program's HLO text and sums up its collectives.

XLA's cost analysis counts the body of a loop once. Here every computation is weighted by
how often it runs: the trip count of a loop whose condition compares with a constant is
read from the text; that of a loop whose end depends on data (sampling) is given by the
caller.

With several slices the text is that of one slice: a transfer to another slice appears as
a send to the host, which forwards it (Megascale).
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from score_jax.planning.course import UNKNOWN, Course

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64,
}  # fmt: skip
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,<=]*)\](\{[^}]*\})?")
NAMED = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?(%[^,}\s]+)")
TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
TARGET = re.compile(r'_xla_megascale_target="?\{\{?([^}]*)\}')  # members of the first group
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
ON_CHIP = "S(1)"  # memory space of a layout: vector memory, so no HBM traffic


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str  # as written, layout included
    kind: str  # such as fusion or all-gather-start
    operands: tuple[str, ...]
    attributes: str
    root: bool


@dataclass
class Module:
    """A program: its computations by name."""

    entry: str = ""
    computations: dict[str, list[Instruction]] = field(default_factory=dict)


@dataclass(frozen=True)
class Collective:
    """The sum of a program's collectives with equal kind, group size and flags."""

    kind: str
    group: int  # participants: chips, or slices if `across`
    in_loop: bool  # inside a sampling loop: runs once per sampled token
    across: bool  # between slices, over DCN
    count: float  # runs per execution of the program
    wire_bytes: float  # sent by each chip per execution


def array_bytes(shape: str, *, hbm_only: bool = False) -> int:
    """Bytes of an array or a tuple of arrays."""
    total = 0.0
    for kind, sizes, layout in ARRAY.findall(shape):
        if kind in BITS and not (hbm_only and ON_CHIP in (layout or "")):
            total += BITS[kind] / 8 * math.prod(int(n.lstrip("<=")) for n in sizes.split(",") if n)
    return math.ceil(total)


def closing(text: str, start: int) -> int:
    """Index after the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")


def parse(text: str) -> Module:
    """Parses the output of `Compiled.as_text()`."""
    module, body = Module(), None
    for line in text.splitlines():
        if not line.startswith(" "):
            head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
            if head and not line.startswith("HloModule"):
                body = module.computations.setdefault(head[2], [])
                module.entry = head[2] if head[1] else module.entry
            continue
        if body is not None and (found := parse_line(line)):
            body.append(found)
    return module


def parse_line(line: str) -> Instruction | None:
    """Parses one line; None where it holds no instruction."""
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    rest = re.sub(r"/\*.*?\*/", "", line[head.end() :])
    end = closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    kind = rest[: rest.index("(")]
    end = closing(rest, len(kind))
    inside, attributes = rest[len(kind) + 1 : end - 1], rest[end:]
    # In parentheses: a constant's value, a parameter's index, or the names of operands.
    literal = kind in ("constant", "parameter")
    operands = (inside,) if literal else tuple(NAMED.findall(inside))
    return Instruction(head[2], shape, kind, operands, attributes, bool(head[1]))


def called(instruction: Instruction) -> dict[str, str]:
    """Computations that an instruction runs, by role."""
    found = {
        match[0].partition("=")[0]: match[1].lstrip("%")
        for match in CALLED.finditer(instruction.attributes)
    }
    if branches := BRANCHES.search(instruction.attributes):
        names = [name.strip().lstrip("%") for name in branches[1].split(",")]
        found |= {f"branch{i}": name for i, name in enumerate(names)}
    return found


def trip_count(module: Module, loop: Instruction, caller: Sequence[Instruction] = ()) -> int | None:
    """Trip count of a loop whose condition compares a counter with a constant, else None.

    Args:
      caller: the computation that contains the loop; it holds the counter's initial value,
        which is 1 where the compiler has peeled off the first iteration.
    """
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(match[1])
    condition = called(loop)["condition"]
    body = {i.name: i for i in module.computations[condition]}
    root = next(i for i in body.values() if i.root)
    if root.kind != "compare" or "direction=LT" not in root.attributes:
        return None
    counter, limit = (body[name] for name in root.operands)
    if limit.kind != "constant" or limit.shape[0] not in "su":
        return None
    return int(limit.operands[0]) - initial_value(loop, counter, {i.name: i for i in caller})


def initial_value(loop: Instruction, counter: Instruction, caller: dict[str, Instruction]) -> int:
    """The initial value of a loop's counter; 0 where the text does not give it."""
    index = re.search(r"index=(\d+)", counter.attributes)
    state = caller.get(loop.operands[0])
    if index is None or state is None or state.kind != "tuple":
        return 0
    value = caller.get(state.operands[int(index[1])])
    while value is not None and value.kind in ("copy", "bitcast"):
        value = caller.get(value.operands[0])
    return int(value.operands[0]) if value is not None and value.kind == "constant" else 0


@dataclass(frozen=True)
class Run:
    """An instruction and how often it runs."""

    instruction: Instruction
    times: float
    in_loop: bool
    computation: str
    fused: bool = False  # a collective inside a fusion


def runs(module: Module, course: Course = UNKNOWN) -> Iterator[Run]:
    """Every instruction outside of fusions, and the collectives in them, with its run count.

    The TPU compiler writes a collective that it overlaps with several fusions into each of
    them, with one channel id: it is yielded once.
    """
    remaining = [list(visits) for visits in course.loops]

    def weights(branches: list[str]) -> Sequence[float]:
        """How often each branch runs."""
        if any(has_kernel(module, branches)):
            return course.kernels or [1.0] * len(branches)
        share = course.chunks
        if any(has_open_loop(module, name) for name in branches) and remaining:
            visits, remaining[0] = remaining[0], [n for n in remaining[0] if n]
            share = len(remaining[0]) / len(visits)
        return [*(1 - share for _ in branches[1:]), share]

    def visit(name: str, times: float, in_loop: bool) -> Iterator[Run]:
        seen: set[str] = set()  # per computation: a peeled iteration shares its loop's channels
        body = module.computations.get(name, [])
        for instruction in body:
            if not known_channel(instruction, seen):
                yield Run(instruction, times, in_loop, name)
            parts = called(instruction)
            if instruction.kind == "while":
                trips = trip_count(module, instruction, body)
                inside = in_loop or trips is None
                if trips is None:
                    visits = remaining.pop(0) if course.loops else [1.0]
                    trips = sum(visits) / max(len(visits), 1)
                for role in ("body", "condition"):
                    yield from visit(parts[role], times * trips, inside)
            elif instruction.kind in ("call", "conditional") or "async" in instruction.kind:
                branches = list(parts.values())
                choice = instruction.kind == "conditional"
                often = weights(branches) if choice else [1.0] * len(branches)
                for part, weight in zip(branches, often, strict=True):
                    # What is done before and after a sampling loop belongs to it.
                    inside = in_loop or (choice and has_open_loop(module, part))
                    yield from visit(part, times * weight, inside)
            elif instruction.kind == "fusion":
                for computation, one in inner_collectives(module, parts["calls"]):
                    if not known_channel(one, seen):
                        yield Run(one, times, in_loop, computation, fused=True)

    yield from visit(module.entry, course.times, False)
    assert not remaining, f"{len(remaining)} of {len(course.loops)} loops are not in the program"


def has_kernel(module: Module, names: Iterable[str]) -> Iterator[bool]:
    """For each computation, whether it runs a splash attention kernel."""
    for name in names:
        yield any(one.name.startswith("splash_") for one in module.computations[name])


def has_open_loop(module: Module, name: str) -> bool:
    """Whether a computation holds a loop whose end depends on data."""
    body = module.computations[name]
    return any(one.kind == "while" and trip_count(module, one, body) is None for one in body)


def known_channel(instruction: Instruction, seen: set[str]) -> bool:
    """Whether a collective's channel is in `seen`; adds it if not."""
    match = re.search(r"channel_id=(\d+)", instruction.attributes)
    if match is None or not is_collective(instruction) or instruction.kind == "send":
        return False  # sends have channels of their own, with the same numbers
    known = match[1] in seen
    seen.add(match[1])
    return known


def inner_collectives(module: Module, name: str) -> Iterator[tuple[str, Instruction]]:
    """Collectives inside a fusion, each with the name of the computation that holds it."""
    for instruction in module.computations.get(name, []):
        if is_collective(instruction):
            yield name, instruction
        if instruction.kind == "fusion":
            yield from inner_collectives(module, called(instruction)["calls"])


def is_collective(instruction: Instruction) -> bool:
    """Whether an instruction moves data between chips; the -done half of a pair does not."""
    kind, attributes = instruction.kind.removesuffix("-start"), instruction.attributes
    return kind in COLLECTIVES or (kind == "send" and TRANSFER.search(attributes) is not None)


def participants(instruction: Instruction) -> tuple[str, int, bool]:
    """A collective's kind, its number of participants, and whether they are slices."""
    if match := TRANSFER.search(instruction.attributes):
        kind = match[1].lower().replace("_", "-").replace("one-to-one", "collective-permute")
        target = TARGET.search(instruction.attributes)
        return kind, len(re.split(",|->", target[1])) if target else 1, True
    members = groups(instruction.attributes)
    return instruction.kind.removesuffix("-start"), members.shape[1], False


def groups(attributes: str) -> np.ndarray:
    """The device groups of a collective: one group per row, as indices in device order.

    Three notations occur: {{0,1},{2,3}}; [groups,size]<=[2,4]T(1,0); and
    mesh['a'=2,'b'=4] {'b'}. The last two number chips by a reshaped, transposed iota.
    """
    if match := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", attributes):
        rows = re.findall(r"\{([\d,]+)\}", match[1])
        return np.array([[int(n) for n in row.split(",")] for row in rows])
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\S+?),? ", attributes + " "):
        return iota(match[3]).reshape(int(match[1]), int(match[2]))
    if match := re.search(
        r"replica_groups=@?mesh\[([^\]]*)\](?:, device_ids=\((.*?)\) )? ?\{([^}]*)\}", attributes
    ):
        sizes = {k: int(v) for k, v in re.findall(r"'([^']+)'=(\d+)", match[1])}
        total = math.prod(sizes.values())
        grid = iota(match[2] or f"[{total}]").reshape(list(sizes.values()))
        named = [list(sizes).index(name) for name in re.findall(r"'([^']+)'", match[3])]
        rest = [axis for axis in range(grid.ndim) if axis not in named]
        size = math.prod(grid.shape[axis] for axis in named)
        return grid.transpose(*rest, *named).reshape(-1, size)
    return np.zeros((1, 1), int)


def iota(text: str) -> np.ndarray:
    """Evaluates a device order such as "[2,4]T(1,0)": iota, reshape, transpose, flatten."""
    match = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    assert match is not None, f"device order {text!r}"
    sizes = [int(n) for n in match[1].split(",")]
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    return (grid.transpose([int(n) for n in match[2].split(",")]) if match[2] else grid).reshape(-1)


def wire_bytes(kind: str, payload: float, group: int) -> float:
    """Bytes that each chip sends in the ring algorithm.

    Args:
      payload: bytes of the full array: an all-gather's result, the operand of any other
        collective.
    """
    share = (group - 1) / group if group > 1 else 0.0
    return payload * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)


def collectives(module: Module, course: Course = UNKNOWN) -> list[Collective]:
    """A program's collectives, summed by kind, group size and flags; the most bytes first."""
    totals: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for run in runs(module, course):
        if not is_collective(run.instruction):
            continue
        kind, size, across = participants(run.instruction)
        shapes = {i.name: i.shape for i in module.computations[run.computation]}
        operands = sum(array_bytes(shapes.get(name, "")) for name in run.instruction.operands)
        payload = operands * size if kind == "all-gather" else operands
        key = (kind, size, run.in_loop, across)
        totals[key][0] += run.times
        totals[key][1] += run.times * wire_bytes(kind, payload, size)
    found = [
        Collective(kind, size, in_loop, across, count, sent)
        for (kind, size, in_loop, across), (count, sent) in totals.items()
    ]
    return sorted(found, key=lambda c: -c.wire_bytes)
