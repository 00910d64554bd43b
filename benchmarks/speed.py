"""The speed of score_jax beside that of its peers: the same work, in alternating runs.

    python -m benchmarks.speed                                   # every work, against transformers
    python -m benchmarks.speed --work=rollout,update --pairs=2
    python -m benchmarks.speed --peers=transformers,tunix --python tunix=VENV/bin/python
    python -m benchmarks.speed --peers= --against=../older       # another checkout of score_jax
    python -m benchmarks.speed --plots                           # time per token by rows and length

Every peer is a process of its own, all alive at once, that does one work at a time when asked to
(benchmarks/peers/). Each is warmed up first, then they take turns, in the other order every other
round. A ratio is a peer's seconds over ours in one round, so above 1 ours is faster. Weights are
random and of one shape; turns end at lengths that are given, in full at their limits, or by a
list with a long tail (score_jax/planning/turn_lengths.py).
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import speed_plots
from score_jax.model.published import SHAPES
from score_jax.planning.turn_lengths import realistic_lengths
from score_jax.report.json_files import write_json

ROOT = Path(__file__).parent.parent
PEERS = Path(__file__).parent / "peers"
SIZES = ("vocab_size", "layers", "width", "heads", "kv_heads", "head_dim", "mlp_dim")
SCRIPTS = {"transformers": "transformers_peer.py", "tunix": "tunix_peer.py"}
DRAWS_ONLY = ("tunix",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What is done and timed; peers get its fields as JSON."""

    name: str
    kind: str  # rollout, score, update
    problems: int
    group: int  # rows of a problem
    prompt: int  # tokens
    instruction: int = 50  # tokens before each later turn
    limits: tuple[int, ...]  # tokens of each turn
    microbatch: int = 0  # rows; 0: all
    lengths: tuple[tuple[int, ...], ...] = ()  # tokens of each turn by row, its stop token included
    model: dict[str, int] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"

    @property
    def rows(self) -> int:
        """Dialogues."""
        return self.problems * self.group


LEARNT: dict[str, Any] = {  # 512 tokens a row at full length
    "problems": 8, "group": 1, "prompt": 128, "limits": (167, 167), "microbatch": 2,
}  # fmt: skip
WORKS = (
    Work(name="rollout", kind="rollout", problems=16, group=1, prompt=128, limits=(64,)),
    Work(name="two_turns", kind="rollout", problems=8, group=8, prompt=128, limits=(48, 48)),
    Work(name="score", kind="score", **LEARNT),
    Work(name="update", kind="update", **LEARNT),
)


def with_lengths(work: Work, lengths: str, shape: str, dtype: str) -> Work:
    """A work with turns of full or realistic lengths, for a published model's shape."""
    if lengths == "full":
        own = (work.limits,) * work.rows
    else:
        own = tuple(map(tuple, realistic_lengths(work.rows, work.limits).tolist()))
    model = {name: getattr(SHAPES[shape], name) for name in SIZES}
    return dataclasses.replace(work, lengths=own, model=model, dtype=dtype)


class Worker:
    """A peer's process."""

    def __init__(self, name: str, python: str, checkout: Path, cores: int):
        self.name = name
        script = PEERS / SCRIPTS.get(name, "ours.py")
        environment = os.environ | {
            "PYTHONPATH": str(checkout),
            "OMP_NUM_THREADS": str(cores),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several frameworks share a card
        }
        self.process = subprocess.Popen(
            [python, str(script)],
            env=environment,
            cwd=checkout,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def ask(self, request: dict[str, Any]) -> dict[str, float]:
        """Sends a request and waits for its answer.

        Raises:
          RuntimeError: the process has ended; its error stands on the terminal.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"{self.name} has ended with exit code {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def compare(workers: Sequence[Worker], work: Work, pairs: int) -> dict[str, Any]:
    """Times one work in all workers, the first of which is ours."""
    request = {"work": dataclasses.asdict(work)}
    warm = {worker.name: worker.ask(request)["seconds"] for worker in workers}
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    cpu: dict[str, list[float]] = {worker.name: [] for worker in workers}
    tokens = 0.0
    for number in range(pairs):
        for worker in workers if number % 2 == 0 else reversed(workers):
            found = worker.ask({"run": True})
            seconds[worker.name].append(found["seconds"])
            cpu[worker.name].append(found["cpu_seconds"])
            tokens = found["tokens"]
    return summary(tokens, seconds) | {"cpu_seconds": cpu, "warm_up_seconds": warm}


def summary(tokens: float, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Speeds, and ratios to the first, of rounds in which all did the same work.

    Args:
      tokens: of one run.
    """
    ours = next(iter(seconds.values()))
    found: dict[str, Any] = {"tokens": tokens, "seconds": seconds, "speeds": {}, "ratios": {}}
    for name, own in seconds.items():
        ratios = [other / mine for other, mine in zip(own, ours, strict=True)]
        found["speeds"][name] = tokens / median(own)
        found["ratios"][name] = {
            "median": median(ratios), "low": min(ratios), "high": max(ratios),
        }  # fmt: skip
    return found


HEAD = f"{'work':22}  {'program':15}  tokens/s  its seconds / ours (range)"


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """A work's results: tokens per second, and ratios with their smallest and largest."""
    out = []
    for number, (peer, speed) in enumerate(found["speeds"].items()):
        ratio = found["ratios"][peer]
        shown = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        line = f"{name:22}  {peer[-15:]:15}  {speed:8.1f}  {shown if number else ''}"
        out.append(line.rstrip())
    return out


def commit(checkout: Path) -> str:
    """The commit of a checkout, marked if files differ from it; "" without git."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    return done.stdout.strip()


def start(options: argparse.Namespace, peers: Sequence[str]) -> list[Worker]:
    """Starts the workers, ours first."""
    pythons = dict(entry.split("=", 1) for entry in options.python)
    cores = len(os.sched_getaffinity(0))
    found = [Worker("ours", sys.executable, ROOT, cores)]
    for name in peers:
        checkout = ROOT if name in SCRIPTS else Path(name).resolve()
        found.append(Worker(name, pythons.get(name, sys.executable), checkout, cores))
    return found


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ",".join(work.name for work in WORKS)
    parser.add_argument("--work", default=names, help="names of works, with commas between")
    parser.add_argument("--lengths", default="full,realistic")
    parser.add_argument("--peers", default="transformers", help="transformers, tunix, or none")
    parser.add_argument("--against", default="", help="another checkout of score_jax")
    parser.add_argument("--python", action="append", default=[], help="PEER=its interpreter")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--model", default="smollm2_135m", choices=sorted(SHAPES))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--plots", action="store_true", help="time per token by rows and length")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Runs the comparisons; prints a table and writes speed.json after each."""
    options = parse(arguments)
    peers = [name for name in (*options.peers.split(","), options.against) if name]
    works, lengths = WORKS, options.lengths.split(",")
    chosen = options.work.split(",")
    if options.plots:
        works, lengths = speed_plots.works(Work), ["full"]
        chosen = [work.name for work in works]
    about = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(ROOT),
        "against": commit(Path(options.against)) if options.against else "",
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "model": options.model,
        "dtype": options.dtype,
        "pairs": options.pairs,
    }
    results: dict[str, dict[str, Any]] = {}
    workers = start(options, peers)
    print(HEAD)
    try:
        for work in (work for work in works if work.name in chosen):
            able = [w for w in workers if work.kind == "rollout" or w.name not in DRAWS_ONLY]
            for kind in lengths:
                own = with_lengths(work, kind, options.model, options.dtype)
                name = f"{work.name}, {kind}"
                results[name] = compare(able, own, options.pairs)
                print("\n".join(lines(name, results[name])), flush=True)
                write_json(options.out / "speed.json", {**about, "results": results})
    finally:
        for worker in workers:
            worker.close()
    print(f"results: {options.out / 'speed.json'}")
    if options.plots:
        print(f"plots: {speed_plots.draw(results, options.out)}")
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
