"""The house: imports point down, workers stay free of jax, nothing silences a linter."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import score_jax
from tests import layout

PACKAGE = Path(score_jax.__file__).parent
FLOORS = (  # a module imports from floors above this line only, or from its own folder
    {"types", "records", "checks"},
    {"text", "distributed"},
    {"model", "tasks"},
    {"data"},
    {"rl", "report"},
    {"stages"},
    {"planning"},
    {"main", "grade"},
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MODULES = layout.modules(PACKAGE)
WITHOUT_JAX = sorted(name for name in MODULES if name == "records" or name.split(".")[0] == "tasks")


def tree(name):
    return layout.tree(MODULES[name])


def imports(name):
    """Modules of the package that one imports, anywhere in its code."""
    return layout.imports(name, MODULES)


def test_every_module_has_a_floor():
    homeless = {name for name in MODULES if name.split(".")[0] not in FLOOR}
    assert not homeless, f"{homeless}: give each a floor in FLOORS"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    folder = name.split(".")[0]
    for other in imports(name):
        target = other.split(".")[0]
        inside = "." in name and target == folder
        assert inside or FLOOR[target] < FLOOR[folder], f"{name} imports {other}, which is no lower"


def test_no_folder_imports_in_a_circle():
    def visit(name, above):
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in sorted(imports(name) & set(MODULES)):
                visit(other, [*above, name])
            done.add(name)

    done = set()
    for name in MODULES:
        visit(name, [])


@pytest.mark.parametrize("name", WITHOUT_JAX)
def test_what_grading_workers_import_never_names_jax(name):
    roots = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0])
    assert not roots & {"jax", "jaxlib", "flax", "optax", "jaxtyping", "orbax"}


def test_importing_what_grading_workers_import_loads_no_jax():
    """Not even through a third party; a worker with jax would wait on the chip's lock."""
    names = ", ".join(f"score_jax.{name}" for name in WITHOUT_JAX)
    code = f"import sys, {names}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def comments(path):
    text = path.read_text()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


@pytest.mark.parametrize("name", MODULES)
def test_nothing_silences_a_linter(name):
    silence = re.compile(r"noqa|type:\s*ignore|pyright:|pylint|ruff:|pragma")
    assert not [text for text in comments(MODULES[name]) if silence.search(text)]


@pytest.mark.parametrize("name", MODULES)
def test_broad_excepts_stand_in_four_named_places_only(name):
    def broad(handler):
        names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
        return bool(names & {"Exception", "BaseException"})

    handlers = [node for node in ast.walk(tree(name)) if isinstance(node, ast.ExceptHandler)]
    assert not [node.lineno for node in handlers if node.type is None], "bare except"
    if name not in (
        "tasks.grading.worker",
        "tasks.sandbox.runner",
        "stages.checkpoint",  # Orbax raises Exception
        "text.hub",  # the client lets its transport's errors through
    ):
        assert not [node.lineno for node in handlers if broad(node)]


@pytest.mark.parametrize("name", MODULES)
def test_functions_stay_short(name):
    for node in ast.walk(tree(name)):
        if not isinstance(node, ast.FunctionDef):
            continue
        first = node.body[0]
        documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        start = first.end_lineno + 1 if documented else node.lineno
        assert node.end_lineno - start < 80, f"{name}.{node.name} is long; split it"


@pytest.mark.parametrize("name", MODULES)
def test_text_files_name_their_encoding(name):
    """The locale's own is another on some machines, and then reads what it can't write."""
    for node in ast.walk(tree(name)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
        binary = called == "os.open" or any("b" in str(mode) for mode in modes)
        opens = called == "open" or called.endswith(
            (".open", ".fdopen", ".read_text", ".write_text")
        )
        runs = called.startswith("subprocess.") and "text" in words
        assert "encoding" in words or not (runs or (opens and not binary)), f"line {node.lineno}"


@pytest.mark.parametrize("name", MODULES)
def test_prompts_are_made_by_ask_alone(name):
    """It takes answer and tests away before a task's prompt function sees the problem."""
    calls = [node.func for node in ast.walk(tree(name)) if isinstance(node, ast.Call)]
    found = [f.lineno for f in calls if isinstance(f, ast.Attribute) and f.attr == "prompt"]
    assert len(found) == (name == "records"), f"{name}, lines {found}: call Task.ask"


def test_package_files_are_empty():
    """An import says where a thing lives."""
    assert not [p for p in PACKAGE.rglob("__init__.py") if p.read_text().strip()]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name):
    assert ast.get_docstring(tree(name))
