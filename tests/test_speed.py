"""benchmarks.speed: works, ratios, and its workers; peers' own frameworks only where installed."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import speed, speed_plots
from score_jax.model.config import ModelConfig

TINY = ModelConfig(
    vocab_size=512, layers=1, width=16, heads=2, kv_heads=1, head_dim=8, mlp_dim=16
)  # fmt: skip
ROLLOUT = {"problems": 2, "group": 2, "prompt": 7, "instruction": 3, "limits": (6, 6)}
ECHO = """
import json, sys
for number, line in enumerate(sys.stdin):
    asked = "work" if "work" in json.loads(line) else "run"
    answer = {"seconds": float(number + SLOW), "cpu_seconds": 0.5, "tokens": 12.0}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(speed.SHAPES, "tiny", TINY)


def work(kind="rollout", lengths="realistic", **fields):
    one = speed.Work(name="tiny", kind=kind, **ROLLOUT | {"microbatch": 2} | fields)
    return speed.with_lengths(one, lengths, "tiny", "float32")


def test_full_lengths_are_the_limits_and_realistic_ones_are_shorter():
    full, real = work(lengths="full"), work()
    assert full.lengths == ((6, 6),) * 4 and len(real.lengths) == 4
    assert sum(map(sum, real.lengths)) < 0.5 * sum(map(sum, full.lengths))
    assert full.model["mlp_dim"] == 16


def test_ratios_are_of_the_same_round_and_speeds_of_medians():
    found = speed.summary(120.0, {"ours": [1.0, 2.0, 4.0], "other": [3.0, 4.0, 4.0]})
    assert found["speeds"] == {"ours": 60.0, "other": 30.0}
    assert found["ratios"]["other"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    shown = speed.lines("tiny, full", found)
    assert shown[1].split()[-6:] == ["other", "30.0", "2.00", "(1.00", "to", "3.00)"]
    assert shown[0].split()[-2:] == ["ours", "60.0"]


def test_workers_take_turns_after_a_warm_up(tmp_path, monkeypatch):
    """Each answers with the number of its request: the first warms up."""
    for name, slow in (("ours.py", 0), ("other.py", 10)):
        (tmp_path / name).write_text(ECHO.replace("SLOW", str(slow)))
    monkeypatch.setattr(speed, "PEERS", tmp_path)
    monkeypatch.setitem(speed.SCRIPTS, "other", "other.py")
    workers = [speed.Worker(name, sys.executable, tmp_path, 1) for name in ("ours", "other")]
    found = speed.compare(workers, work(), 2)
    for worker in workers:
        worker.close()
    assert found["warm_up_seconds"] == {"ours": 0.0, "other": 10.0}
    assert found["seconds"] == {"ours": [1.0, 2.0], "other": [11.0, 12.0]}
    assert found["cpu_seconds"] == {"ours": [0.5, 0.5], "other": [0.5, 0.5]}


def test_a_worker_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "ours.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(speed, "PEERS", tmp_path)
    worker = speed.Worker("ours", sys.executable, tmp_path, 1)
    with pytest.raises(RuntimeError, match="ours has ended with exit code 3"):
        worker.ask({"run": True})
    worker.close()


def counts(name, *works):
    """Tokens that a worker reports for each work, which it asserts to be those asked for."""
    worker = speed.Worker(name, sys.executable, speed.ROOT, 1)
    try:
        requests = [{"work": speed.dataclasses.asdict(one)} for one in works]
        return [worker.ask(one) and worker.ask({"run": True})["tokens"] for one in requests]
    finally:
        worker.close()


def rollout_and_learning():
    return work(), work(lengths="full"), work("score"), work("update")


def expected(works):
    """Tokens drawn, or the tokens of whole dialogues: 7 of the prompt, 3 between the turns."""
    drawn = [float(np.sum(one.lengths)) for one in works]
    own = [n if w.kind == "rollout" else n + 4 * 10 for n, w in zip(drawn, works, strict=True)]
    return own


def test_ours_does_the_works_that_are_asked_for():
    works = rollout_and_learning()
    assert counts("ours", *works) == expected(works)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the extra [parity]")
def test_transformers_does_the_same_works():
    works = rollout_and_learning()
    assert counts("transformers", *works) == expected(works)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tunix") is None, reason="needs google-tunix")
def test_tunix_draws_the_same_rollouts():
    works = rollout_and_learning()[:2]
    assert counts("tunix", *works) == expected(works)


def test_the_command_writes_what_it_found(tmp_path, capsys):
    speed.main(
        ["--model=tiny", "--work=rollout", "--lengths=full", "--peers=", "--pairs=1",
         f"--out={tmp_path}"]
    )  # fmt: skip
    (name,) = json.loads((Path(tmp_path) / "speed.json").read_text())["results"]
    assert name == "rollout, full" and name in capsys.readouterr().out


def test_curves_are_milliseconds_per_token():
    results = {
        "rows 4, full": {"speeds": {"ours": 500.0}},
        "length 128, full": {"speeds": {"ours": 250.0}},
    }
    assert speed_plots.curves(results, "rows") == {"ours": [(4, 2.0)]}
    assert speed_plots.curves(results, "length") == {"ours": [(128, 4.0)]}


def test_both_plots_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    results = {
        f"{kind} {n}, full": {"speeds": {"ours": 10.0}}
        for kind in ("rows", "length")
        for n in (1, 2)
    }
    path = speed_plots.draw(results, tmp_path)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_works_of_the_plots_have_the_rows_and_lengths_of_their_names():
    for one in speed_plots.works(speed.Work):
        axis, size = one.name.split()
        assert int(size) == (one.rows if axis == "rows" else one.limits[0])
