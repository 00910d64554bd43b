"""Finds the Python in a response: inside fences, between them, or in the midst of prose.

A response is cut at every line that opens or closes a fence, without asking which of
the two it does: models forget one of them, nest them, and tag them at will. A piece
that is Python is a block. The last block that defines what the tests call is the
program, so usage, output and tests behind it do not count and a later attempt does;
what it takes from other blocks (imports, helpers) is joined to it.
"""

import ast
import builtins
import re
import textwrap
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

LONGEST_PROGRAM = 100_000  # characters
MOST_PIECES = 60  # looked at from the end
MOST_IN_TEXT = 8  # fences inside one docstring
MOST_REPAIRS = 40  # of a piece of prose with a program in it
CUT = re.compile(
    r"""^(?:[ \t>]|[-*+][ \t]|\d+[.)][ \t])*  # also in a list or a quotation
        (?:`{3,}|~{3,})(?:\w*[ \t]*(?=(?:def|class|import|from)[ ]+\w)|[^`\n]*$)
      | (?<!`)`{3,}+[ \t]*+$  # behind the last line of a program
      | ^[ \t]*\[(?:BEGIN|DONE)\] | (?<=[ \t])\[DONE\][ \t]*+$  # as in the shots of MBPP
    """,
    re.MULTILINE | re.VERBOSE,
)
MARKS = re.compile(r"^[\ufeff\u200b]+", re.MULTILINE)  # that editors put before a line
CODE = re.compile(  # how a program in the midst of prose begins; x = 1 may be a formula
    r"^([ \t]*)(?:@\w|(?:async +def|def|class|import|from) +\w|[A-Z_][A-Z_0-9]* *=(?!=))",
    re.MULTILINE,
)
NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LASTING = (*NAMED, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
EFFECTS = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)


@dataclass(frozen=True)
class Block:
    """A piece of Python."""

    source: str
    tree: ast.Module

    @cached_property
    def imports(self) -> frozenset[str]:
        """The names that it imports at its top level."""
        return bindings(self.tree)[1]

    @cached_property
    def defines(self) -> frozenset[str]:
        """The other names that it gives to others."""
        return bindings(self.tree)[0]

    @cached_property
    def needs(self) -> frozenset[str]:
        """The names that it takes from others."""
        return free(self.tree) - set(dir(builtins))


def parse(source: str) -> ast.Module | SyntaxError:
    """The tree of a source, or what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a program's text is its own affair
            return ast.parse(source)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError) as error:
        return SyntaxError(str(error))


def free(tree: ast.AST) -> frozenset[str]:
    """The names that a tree reads and nowhere binds, in whatever scope; built-in ones too."""
    used, bound = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, NAMED):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return frozenset(used - bound)


def bindings(tree: ast.Module) -> tuple[frozenset[str], frozenset[str]]:
    """The names that a module defines, and those that it imports."""
    defines, imports = set(), set()
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, NAMED):
            defines.add(node.name)
        elif isinstance(node, ast.alias):
            imports.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defines.add(node.id)
        elif not isinstance(node, SCOPES):
            todo += ast.iter_child_nodes(node)
    return frozenset(defines), frozenset(imports)


def pieces(response: str) -> list[str]:
    """What lies between fences and markers, in order; a docstring that holds some stays whole."""
    text = MARKS.sub("", response.replace("\r\n", "\n").replace("\r", "\n"))
    cuts = [match.span() for match in CUT.finditer(text) if not _in_comment(text, match.start())]
    cuts = cuts[-MOST_PIECES + 1 :]
    starts, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
    found, place = [], 0
    while place < len(starts):
        last = _end_of_text(text, starts[place], ends[place : place + MOST_IN_TEXT]) + place
        found.append(text[starts[place] : ends[last]].strip("\n"))
        place = last + 1
    return [piece for piece in found if piece.strip()]


def _in_comment(text: str, place: int) -> bool:
    return "#" in text[text.rfind("\n", 0, place) + 1 : place]


def _end_of_text(text: str, start: int, ends: list[int]) -> int:
    """Which of the cuts at `ends` is the first that is not inside a text of several lines."""
    for number, end in enumerate(ends):
        if not _breaks_off(text[start:end]):
            return number
    return 0  # it has no end: the fences were fences


def _breaks_off(piece: str) -> bool:
    """Whether a program ends inside a text of several lines, such as a docstring."""
    if not CODE.search(piece) or len(piece) > LONGEST_PROGRAM:
        return False
    tree = parse(plain(piece))
    return isinstance(tree, SyntaxError) and "unterminated triple-quoted" in tree.msg


def plain(piece: str) -> str:
    """A piece without the marks and the indentation of a quotation or list around it."""
    lines = piece.split("\n")
    if all(line.lstrip().startswith(">") for line in lines if line.strip()):
        lines = [re.sub(r"^[ \t]*> ?", "", line) for line in lines]
    return textwrap.dedent("\n".join(lines)).strip("\n")


def blocks(response: str) -> list[Block]:
    """The Python of a response, in order."""
    found: list[Block] = []
    for piece in pieces(response):
        sources = [text for text in (piece, plain(piece)) if len(text) <= LONGEST_PROGRAM]
        trees = [(source, parse(source)) for source in sources]
        whole = [Block(source, tree) for source, tree in trees if isinstance(tree, ast.Module)]
        found += whole[:1] or in_prose(piece)
    return [without_words(block) for block in found if not all(map(_idle, block.tree.body))]


def _idle(statement: ast.stmt) -> bool:
    """Whether a statement has no effect but to fail, as words have that happen to be Python."""
    return isinstance(statement, ast.Expr) and not any(
        isinstance(node, EFFECTS) for node in ast.walk(statement)
    )


def without_words(block: Block) -> Block:
    """Takes words out that stand on lines of their own, such as a tag whose fence was lost."""
    words = [
        statement
        for statement in block.tree.body
        if _idle(statement) and not isinstance(getattr(statement, "value", None), ast.Constant)
    ]
    gone = {line for word in words for line in range(word.lineno, (word.end_lineno or 0) + 1)}
    lines = [line for n, line in enumerate(block.source.split("\n"), 1) if n not in gone]
    source = "\n".join(lines).strip("\n")
    tree = parse(source)
    if isinstance(tree, ast.Module) and len(tree.body) == len(block.tree.body) - len(words):
        return Block(source, tree) if words else block
    return block


def in_prose(piece: str) -> Iterator[Block]:
    """Yields the programs that begin and end in the midst of prose, without a fence."""
    piece = piece[-LONGEST_PROGRAM:]
    done = 0
    for start in list(CODE.finditer(piece))[-MOST_REPAIRS:]:
        if start.start() < done:
            continue
        lines = piece[start.start() :].split("\n")
        source = longest_program(_indented(lines, start[1]))
        if source is not None:
            used = source.count("\n") + 1
            done = start.start() + sum(len(line) + 1 for line in lines[:used])
            yield Block(source, ast.parse(source))


def longest_program(lines: list[str], *, least: int = 1) -> str | None:
    """The first lines as far as they are a program; what follows is prose.

    Args:
      lines: of a text that begins with a program.
      least: how many lines it must have.
    """
    for _ in range(MOST_REPAIRS):
        tree = parse("\n".join(lines))
        if isinstance(tree, ast.Module):
            return "\n".join(lines)
        lines = lines[: min(tree.lineno or 1, len(lines)) - 1]
        if len(lines) < least:
            break
    return None


def _indented(lines: list[str], indent: str) -> list[str]:
    """The lines as far as they have this indentation, and without it."""
    ends = [n for n, line in enumerate(lines) if line.strip() and not line.startswith(indent)]
    return [line.removeprefix(indent) for line in lines[: ends[0] if ends else None]]


def extract(response: str, wanted: Collection[str] = ()) -> str | None:
    """Returns the program of a response, or None if there is none that parses.

    Args:
      response: the model's text.
      wanted: names that the tests take from the program.
    """
    found, names = blocks(response), frozenset(wanted)
    if not found:
        return None
    ranks = [
        (bool(block.defines & names), bool(block.imports & names), bool(block.defines), place)
        for place, block in enumerate(found)
    ]
    return joined(found, max(ranks)[-1], names)


def joined(found: list[Block], place: int, wanted: frozenset[str]) -> str:
    """A block with what it needs of the others: of the nearest before it, else behind it."""
    chosen = found[place]
    known = chosen.defines | chosen.imports
    missing = (chosen.needs | wanted) - known
    parts = {place: chosen.source}
    for other in (*reversed(range(place)), *range(place + 1, len(found))):
        block = found[other]
        gives = block.defines | block.imports
        if missing & gives:
            kept = [ast.unparse(node) for node in block.tree.body if isinstance(node, LASTING)]
            parts[other] = "\n".join(kept)
            known |= gives
            missing = (missing | block.needs) - known
    return "\n\n".join(parts[key] for key in sorted(parts))
