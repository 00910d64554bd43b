"""First contact with a machine: is what it computes right, how fast is it, does a run survive?

    python -m score_jax.planning.first_contact --workdir=DIR [--topology=v5e:2x4] [-- FLAGS...]

writes DIR/first_contact.json: numbers on the devices against the CPU's, a step's times beside
the plan's bounds, memory beside the plan's, a run that was killed and resumed against one that
was not, and the workdir's file system. Every part is a process of its own, and what fails is told
in the file; launch/first_contact.sh runs this on a TPU host. For one host.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from score_jax.report.json_files import read_json, write_json

CONFIG = "configs/contact.py"  # real weights, and little to draw
BENCH_CONFIG = "configs/recipes/qwen25_0p5b_math.py"  # of which only the shape is used
MODEL_FLAGS = ("--config.weights.", "--config.tokenizer.")  # of CONFIG's model alone
STEPS = 4
STOPPED = 128 + signal.SIGTERM  # exit code of a run that saved and ended
# Metrics that two equal runs do not share: times, and of the sampler's work, which a run that was
# resumed from a saved rollout did not do.
TIMED = ("time/", "tokens_per_second/", "compile/", "sample/")
SIZE = 1 << 28  # bytes of the file that is written and read
PATIENCE = 3600.0  # seconds for a part


class PartFailed(RuntimeError):
    """A part of the contact did not end well; the message is its last line."""


@dataclass(frozen=True, kw_only=True)
class Contact:
    """What is run, and where."""

    folder: Path
    config: str = CONFIG
    bench_config: str = BENCH_CONFIG
    topology: str = ""  # of the plan's bounds; "": no bounds
    flags: Sequence[str] = ()  # overrides for every run and for the probe

    def main(self, workdir: str, config: str, *flags: str) -> list[str]:
        """A command of score_jax.main in a folder of its own."""
        known = (f"--config={config}", f"--workdir={self.folder / workdir}")
        return [sys.executable, "-m", "score_jax.main", *known, *flags]

    def measure(self, workdir: str, *flags: str) -> list[str]:
        """A command that times or plans a step; it keeps its own model."""
        own = [flag for flag in self.flags if not flag.startswith(MODEL_FLAGS)]
        return self.main(workdir, self.bench_config, *flags, *own)

    def train(self, workdir: str) -> list[str]:
        """A short run that saves every step."""
        short = (f"--config.steps={STEPS}", "--config.checkpoint.every=1")
        return self.main(workdir, self.config, *short, "--config.log.progress=False", *self.flags)


def finish(command: Sequence[str], log: Path, **variables: str) -> None:
    """Runs a command to its end.

    Raises:
      PartFailed: its exit code is not 0.
    """
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(
            command, stdout=out, stderr=out, env=os.environ | variables, timeout=PATIENCE,
            check=False,
        )  # fmt: skip
    if done.returncode:
        raise PartFailed(f"exit code {done.returncode}: {last_line(log)}")


def last_line(log: Path) -> str:
    """The last line of a log that names an error, else the last that says something."""
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    return (errors or lines or ["it said nothing"])[-1]


def numbers(contact: Contact) -> dict[str, Any]:
    """What the devices are, and their log-probabilities against the CPU's."""
    out = contact.folder / "probe.json"
    module = "score_jax.planning.contact_probe"
    command = [sys.executable, "-m", module, f"--config={contact.config}", f"--out={out}"]
    command += contact.flags
    # With JAX_PLATFORMS=tpu alone there would be no CPU to compare with.
    platforms = os.environ.get("JAX_PLATFORMS", "")
    both = f"{platforms},cpu" if platforms and "cpu" not in platforms else platforms
    finish(command, contact.folder / "probe.log", JAX_PLATFORMS=both)
    return read_json(out)


def speed(contact: Contact) -> dict[str, Any]:
    """A step's times and memory."""
    flags = ("--mode=bench", "--lengths=full", "--repeats=3")
    finish(contact.measure("bench", *flags), contact.folder / "bench.log")
    bench = read_json(contact.folder / "bench/bench.json")
    return {
        "config": contact.bench_config,
        "seconds": {name: times["median"] for name, times in bench["seconds"].items()},
        "tokens_per_second": bench["tokens_per_second"],
        "peak_bytes": bench["memory"]["peak_bytes"],
        "peak_bytes_source": bench["memory"]["source"],
    }


def bounds(contact: Contact) -> dict[str, Any]:
    """The plan's lower bounds of the step of `speed`, in seconds, and its memory."""
    flag = (f"--topology={contact.topology}",) if contact.topology else ()
    command = contact.measure("plan", "--mode=plan", *flag)
    # A topology's compiler opens no chip, and needs none.
    finish(command, contact.folder / "plan.log", **({"JAX_PLATFORMS": "cpu"} if flag else {}))
    plan = read_json(contact.folder / "plan/plan.json")
    programs = plan["programs"]
    phases = {p["name"]: p["seconds"] for one in programs.values() for p in phases_of(one)}
    return {
        "topology": contact.topology,
        "seconds": phases,
        "bytes": max(one["total_bytes"] for one in programs.values()),
        "fits": plan["fits"],
    }


def phases_of(program: dict[str, Any]) -> list[dict[str, Any]]:
    """The phases of a planned program; none without a topology."""
    return list(program.get("phases", {}).values())


def survival(contact: Contact) -> dict[str, Any]:
    """A run that is killed and resumed, against one that was left alone."""
    folder = contact.folder
    finish(contact.train("whole"), folder / "whole.log")
    killed = kill_midway(contact.train("cut"), folder / "cut", folder / "cut.log")
    finish(contact.train("cut"), folder / "resumed.log")
    rows = rows_of(folder / "whole")
    return compared(training_rows(folder / "whole"), training_rows(folder / "cut")) | {
        "killed_after_step": killed["step"],
        "exit_code_of_killed": killed["code"],
        "was_resumed": killed["code"] == STOPPED and killed["step"] < STEPS,
        "mismatch_nats_per_token": {
            k: v for k, v in rows[-1].items() if k.startswith("mismatch/mean/")
        },
        "step_seconds": {k: v for k, v in rows[-1].items() if k.startswith("time/")},
    }


def compared(whole: list[dict[str, Any]], cut: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether two runs have logged the same, and what differs."""
    pairs = list(zip(whole, cut, strict=False))
    differing = {key for a, b in pairs for key in a | b if a.get(key) != b.get(key)}
    return {
        "steps": len(whole),
        "steps_of_resumed": len(cut),
        "equal": not differing and len(whole) == len(cut),
        "differing_metrics": sorted(differing),
    }


def kill_midway(command: Sequence[str], workdir: Path, log: Path) -> dict[str, int]:
    """Sends SIGTERM when the first step is logged.

    Raises:
      PartFailed: the run ended before.
    """
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        end = time.monotonic() + PATIENCE
        while not (steps := logged_steps(workdir)):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                raise PartFailed(f"no step before the end: {last_line(log)}")
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        return {"step": steps, "code": process.wait(PATIENCE)}


def metric_files(workdir: Path) -> list[Path]:
    """The metrics of the stages in a folder."""
    return sorted(workdir.glob("*/metrics.jsonl"))


def logged_steps(workdir: Path) -> int:
    """How many whole lines the stages' metrics have."""
    return sum(path.read_text(encoding="utf-8").count("\n") for path in metric_files(workdir))


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    """The logged rows of all stages."""
    texts = (path.read_text(encoding="utf-8") for path in metric_files(workdir))
    return [json.loads(line) for text in texts for line in text.splitlines()]


def training_rows(workdir: Path) -> list[dict[str, Any]]:
    """The logged rows without times."""
    return [{k: v for k, v in row.items() if not k.startswith(TIMED)} for row in rows_of(workdir)]


def file_system(contact: Contact) -> dict[str, Any]:
    """Writes, reads, renames and deletes in the workdir, as checkpoints do."""
    block, begun = os.urandom(1 << 20), time.monotonic()
    folder, moved = contact.folder / "probe.partial", contact.folder / "probe"
    shutil.rmtree(moved, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    with (folder / "data").open("wb") as file:
        for _ in range(SIZE // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    written = time.monotonic()
    folder.replace(moved)  # a checkpoint is finished by renaming its folder
    renamed = time.monotonic()
    whole = (moved / "data").read_bytes() == block * (SIZE // len(block))
    read = time.monotonic()
    shutil.rmtree(moved)
    return {
        "bytes": SIZE,
        "write_seconds": written - begun,
        "rename_seconds": renamed - written,
        "read_seconds": read - renamed,
        "same_bytes": whole,
        "free_bytes": shutil.disk_usage(contact.folder).free,
    }


PARTS: dict[str, Callable[[Contact], dict[str, Any]]] = {
    "file_system": file_system,
    "numbers": numbers,
    "survival": survival,
    "speed": speed,
    "plan": bounds,
}


def make_contact(contact: Contact) -> dict[str, Any]:
    """Runs all parts; a part that fails leaves its reason, and the others are run all the same."""
    shutil.rmtree(contact.folder, ignore_errors=True)  # runs of before would only be resumed
    contact.folder.mkdir(parents=True)
    found: dict[str, Any] = {"command": sys.argv, "failed": {}}
    for name, part in PARTS.items():
        print(f"{name} ...", flush=True)
        begun = time.monotonic()
        try:
            found[name] = part(contact)
        except (PartFailed, OSError, LookupError, ValueError, subprocess.TimeoutExpired) as error:
            found["failed"][name] = f"{type(error).__name__}: {error}"
            print(f"{name} FAILED: {error}", flush=True)
        found.setdefault("seconds", {})[name] = time.monotonic() - begun
        write_json(contact.folder.parent / f"{contact.folder.name}.json", found)
    return found


def main() -> int:
    """The command; 1 if a part failed, or a run was not resumed, or as another one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs"))
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--bench-config", default=BENCH_CONFIG)
    parser.add_argument("--topology", default="")
    parser.add_argument("flags", nargs="*", help="behind --: for every run of score_jax.main")
    given = parser.parse_args()
    contact = Contact(
        folder=given.workdir / "first_contact",
        config=given.config,
        bench_config=given.bench_config,
        topology=given.topology,
        flags=given.flags,
    )
    found = make_contact(contact)
    print(json.dumps(found, indent=1))
    print(f"first contact: {given.workdir / 'first_contact.json'}")
    survived = found.get("survival", {})
    well = survived.get("equal") and survived.get("was_resumed")
    return int(bool(found["failed"]) or not well)


if __name__ == "__main__":
    sys.exit(main())
