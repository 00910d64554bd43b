"""Which module imports which, and the figures of the package's layout.

    python -m tests.layout [FOLDER of a package]

prints how many modules and folders stand at the top, the arrows and floors that they form, the
longest chain of imports, and the lengths of files and of functions (without docstrings).
"""

import ast
import statistics
import sys
from functools import lru_cache
from pathlib import Path


def modules(package):
    """Paths of the package's modules by dotted name below it."""
    return {
        ".".join(path.relative_to(package).with_suffix("").parts): path
        for path in sorted(package.rglob("*.py"))
        if path.name != "__init__.py"
    }


@lru_cache
def tree(path):
    return ast.parse(path.read_text())


def imports(name, found):
    """Names of the modules that one imports, anywhere in its code."""
    package = next(iter(found.values())).parents[next(iter(found)).count(".")].name
    out = set()
    for node in ast.walk(tree(found[name])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            base = (node.module or "").removeprefix(package).lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                out.add(full if full in found else base)
        elif isinstance(node, ast.Import):
            out |= {
                alias.name.removeprefix(f"{package}.")
                for alias in node.names
                if alias.name.startswith(f"{package}.")
            }
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name}: relative import"
    return out


def longest_chain(arrows):
    """The longest line of names each of which imports the next; arrows must form no circle."""

    @lru_cache
    def below(name):
        chains = [below(other) for one, other in sorted(arrows) if one == name]
        return (name, *max(chains, key=len, default=()))

    return max((below(name) for name, _ in sorted(arrows)), key=len)


def function_lines(path):
    """Lines of every function of a module, its docstring left out."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            yield node.end_lineno - node.lineno + 1 - docstring


def spread(values):
    """Median, 90th percentile and maximum."""
    return statistics.median(values), statistics.quantiles(values, n=10)[-1], max(values)


def main(package):
    """Prints the figures."""
    found = modules(package)
    arrows = {(name, other) for name in found for other in imports(name, found) & set(found)}
    rooms = {(name.split(".")[0], other.split(".")[0]) for name, other in arrows}
    rooms = {(name, other) for name, other in rooms if name != other}
    print(f"{len(found)} modules, {sum('.' not in name for name in found)} of them at the top")
    entries = {name.split(".")[0] for name in found}
    print(f"{len(entries)} entries, {len(rooms)} arrows between them")
    for kind, lines in (("entries", rooms), ("modules", arrows)):
        chain = longest_chain(lines)
        print(f"longest chain of {kind}: {len(chain)}: {' -> '.join(chain)}")
    for kind, counts in (
        ("file", [len(path.read_text().splitlines()) for path in found.values()]),
        ("function", [count for path in found.values() for count in function_lines(path)]),
    ):
        middle, most, largest = spread(counts)
        print(f"lines of a {kind}: median {middle:.0f}, p90 {most:.0f}, longest {largest}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "score_jax"))
