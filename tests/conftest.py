"""What several test modules share: compiled programs, and one finished run."""

import os
import shutil
from contextlib import contextmanager
from importlib.util import find_spec

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from score_jax.text import hub
from tests import tiny_stages

# Most of the tests' time is the compilation of small programs. Without LLVM's passes, and with the
# older emitters that JAX 0.11 no longer has, it takes a fifth, and programs are slower. XLA's own
# passes stay. Flags of one's own count instead: `XLA_FLAGS= python -m pytest` compiles as users do.
QUICK = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")


def pytest_configure(config):
    """Compiles quickly, but not what runs for long, nor for an accelerator.

    Commands that tests run keep no programs in the user's own folder.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
    cpu = not any(map(find_spec, ("jax_plugins", "libtpu")))
    if "not slow" in config.option.markexpr and (cpu or os.environ.get("JAX_PLATFORMS") == "cpu"):
        os.environ.setdefault("XLA_FLAGS", " ".join(QUICK))  # read when a device is asked for


@pytest.fixture(autouse=True)
def no_hub_is_remembered():
    """A run asks a hub once for what it needs; tests' hubs are not one another's."""
    hub.fetch.cache_clear()


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder of compiled programs that the session's processes share, named as a user's."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of all workers
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(base / "score_jax/programs")


@contextmanager
def compile_cache(folder):
    """Has this process use a folder of compiled programs."""
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def compiled(cache):
    """Has this process use the session's folder for the length of a test."""
    with compile_cache(cache):
        yield


@pytest.fixture(scope="session")
def finished_run(cache, tmp_path_factory):
    """A workdir in which Stage I has run to its end without an interruption.

    Under the transfer guard: what is compared with it without one shows that nothing changed.
    """
    workdir = tmp_path_factory.mktemp("finished")
    command = tiny_stages.command(workdir, program="tests.guarded")
    code, _, err = tiny_stages.finish(command, cache)
    assert code == 0, err
    return workdir


@pytest.fixture
def workdir(finished_run, tmp_path):
    """A copy of the finished run that a test may change."""
    return shutil.copytree(finished_run, tmp_path / "run")
