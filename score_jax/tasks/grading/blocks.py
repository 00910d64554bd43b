"""Extracts the Python program of a response: from fenced blocks, between them, or from prose.

A response is split at every line that opens or closes a fence, without distinguishing the
two, since models omit, nest and mislabel fences. A piece that parses as Python is a block.
The program is the last block that defines the names that the tests call. Later blocks with
usage, output or tests are therefore ignored, but a later version of the program wins. The
imports and helpers that it needs from other blocks are joined to it.
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
MOST_PIECES = 60  # the last pieces of a response; earlier ones are not split
MOST_IN_TEXT = 8  # fences inside one docstring
MOST_REPAIRS = 40  # attempts to find a program in a piece of prose
CUT = re.compile(
    r"""^(?:[ \t>]|[-*+][ \t]|\d+[.)][ \t])*  # also in a list or a quotation
        (?:`{3,}|~{3,})(?:\w*[ \t]*(?=(?:def|class|import|from)[ ]+\w)|[^`\n]*$)
      | (?<!`)`{3,}+[ \t]*+$  # at the end of a program's last line
      | ^[ \t]*\[(?:BEGIN|DONE)\] | (?<=[ \t])\[DONE\][ \t]*+$  # as in the shots of MBPP
    """,
    re.MULTILINE | re.VERBOSE,
)
MARKS = re.compile(r"^[\ufeff\u200b]+", re.MULTILINE)  # invisible characters at line starts
CODE = re.compile(  # the first line of a program in prose; x = 1 is left out as a formula
    r"^([ \t]*)(?:@\w|(?:async +def|def|class|import|from) +\w|[A-Z_][A-Z_0-9]* *=(?!=))",
    re.MULTILINE,
)
NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
BINDING = (*NAMED, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
EFFECTS = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)


@dataclass(frozen=True)
class Block:
    """A piece of a response that is Python."""

    source: str
    tree: ast.Module

    @cached_property
    def imports(self) -> frozenset[str]:
        """The names that the block imports at its top level."""
        return bindings(self.tree)[1]

    @cached_property
    def defines(self) -> frozenset[str]:
        """The other names that the block binds at its top level."""
        return bindings(self.tree)[0]

    @cached_property
    def needs(self) -> frozenset[str]:
        """The free names of the block, without built-in ones."""
        return free(self.tree) - set(dir(builtins))


def parse(source: str) -> ast.Module | SyntaxError:
    """Parses a source; returns the error if it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as for "\d" in a model's program
            return ast.parse(source)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError) as error:
        return SyntaxError(str(error))


def free(tree: ast.AST) -> frozenset[str]:
    """The names that a tree reads but binds in no scope, built-in ones included."""
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
    """The names that a module defines at its top level, and those that it imports there."""
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
    """Splits a response at fences and markers, but not at those inside a docstring."""
    text = MARKS.sub("", response.replace("\r\n", "\n").replace("\r", "\n"))
    cuts = [match.span() for match in CUT.finditer(text) if not _in_comment(text, match.start())]
    cuts = cuts[-MOST_PIECES + 1 :]
    starts, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
    found, index = [], 0
    while index < len(starts):
        last = _first_real_cut(text, starts[index], ends[index : index + MOST_IN_TEXT]) + index
        found.append(text[starts[index] : ends[last]].strip("\n"))
        index = last + 1
    return [piece for piece in found if piece.strip()]


def _in_comment(text: str, offset: int) -> bool:
    return "#" in text[text.rfind("\n", 0, offset) + 1 : offset]


def _first_real_cut(text: str, start: int, ends: list[int]) -> int:
    """The index of the first cut in `ends` that is not inside a triple-quoted string."""
    for index, end in enumerate(ends):
        if not _ends_in_string(text[start:end]):
            return index
    return 0  # the string is never closed, so the cuts were fences


def _ends_in_string(piece: str) -> bool:
    """Whether a program ends inside a triple-quoted string, such as a docstring."""
    if not CODE.search(piece) or len(piece) > LONGEST_PROGRAM:
        return False
    tree = parse(plain(piece))
    return isinstance(tree, SyntaxError) and "unterminated triple-quoted" in tree.msg


def plain(piece: str) -> str:
    """Removes the ">" and the indentation of a surrounding quotation or list."""
    lines = piece.split("\n")
    if all(line.lstrip().startswith(">") for line in lines if line.strip()):
        lines = [re.sub(r"^[ \t]*> ?", "", line) for line in lines]
    return textwrap.dedent("\n".join(lines)).strip("\n")


def blocks(response: str) -> list[Block]:
    """The Python blocks of a response, in order."""
    found: list[Block] = []
    for piece in pieces(response):
        sources = [text for text in (piece, plain(piece)) if len(text) <= LONGEST_PROGRAM]
        trees = [(source, parse(source)) for source in sources]
        parsed = [Block(source, tree) for source, tree in trees if isinstance(tree, ast.Module)]
        found += parsed[:1] or in_prose(piece)
    return [
        without_words(block) for block in found if not all(map(_has_no_effect, block.tree.body))
    ]


def _has_no_effect(statement: ast.stmt) -> bool:
    """Whether a statement has no effect: an expression without calls, such as a word of prose."""
    return isinstance(statement, ast.Expr) and not any(
        isinstance(node, EFFECTS) for node in ast.walk(statement)
    )


def without_words(block: Block) -> Block:
    """Removes words on separate lines, such as a language tag whose fence is missing."""
    words = [
        statement
        for statement in block.tree.body
        if _has_no_effect(statement)
        and not isinstance(getattr(statement, "value", None), ast.Constant)
    ]
    removed = {line for word in words for line in range(word.lineno, (word.end_lineno or 0) + 1)}
    lines = [line for n, line in enumerate(block.source.split("\n"), 1) if n not in removed]
    source = "\n".join(lines).strip("\n")
    tree = parse(source)
    if isinstance(tree, ast.Module) and len(tree.body) == len(block.tree.body) - len(words):
        return Block(source, tree) if words else block
    return block


def in_prose(piece: str) -> Iterator[Block]:
    """Yields the programs inside prose, without a fence."""
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
    """The longest program that the first lines form; None if there is none.

    Args:
      lines: of a text that begins with a program and may continue with prose.
      least: minimum number of lines of the program.
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
    """The first lines that have this indentation, with it removed."""
    ends = [n for n, line in enumerate(lines) if line.strip() and not line.startswith(indent)]
    return [line.removeprefix(indent) for line in lines[: ends[0] if ends else None]]


def extract(response: str, wanted: Collection[str] = ()) -> str | None:
    """Returns the program of a response, or None if there is none that parses.

    Args:
      response: the model's text.
      wanted: names that the tests use from the program.
    """
    found, names = blocks(response), frozenset(wanted)
    if not found:
        return None
    ranks = [
        (bool(block.defines & names), bool(block.imports & names), bool(block.defines), index)
        for index, block in enumerate(found)
    ]
    return joined(found, max(ranks)[-1], names)


def joined(found: list[Block], index: int, wanted: frozenset[str]) -> str:
    """Joins a block with the blocks that bind its missing names: nearest before, then after."""
    chosen = found[index]
    known = chosen.defines | chosen.imports
    missing = (chosen.needs | wanted) - known
    parts = {index: chosen.source}
    for other in (*reversed(range(index)), *range(index + 1, len(found))):
        block = found[other]
        bound = block.defines | block.imports
        if missing & bound:
            kept = [ast.unparse(node) for node in block.tree.body if isinstance(node, BINDING)]
            parts[other] = "\n".join(kept)
            known |= bound
            missing = (missing | block.needs) - known
    return "\n\n".join(parts[key] for key in sorted(parts))
