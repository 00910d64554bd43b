"""Time per token against the number of rows, and against the length of a turn; needs matplotlib."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # with turns of 32 tokens
LENGTHS = (128, 256, 512, 1024, 2048, 4096)  # tokens of a turn, of 4 rows
TITLES = {"rows": "rows", "length": "tokens of a turn"}


def works(make: Callable[..., Any]) -> tuple[Any, ...]:
    """The rollouts of both plots, as values of `speed.Work`."""
    one: dict[str, Any] = {"kind": "rollout", "group": 1, "prompt": 128}
    return (
        *(make(name=f"rows {n}", problems=n, limits=(32,), **one) for n in ROWS),
        *(make(name=f"length {n}", problems=4, limits=(n,), **one) for n in LENGTHS),
    )


def curves(results: dict[str, dict[str, Any]], axis: str) -> dict[str, list[tuple[int, float]]]:
    """For each program, pairs of rows or length and milliseconds per token."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, result in results.items():
        kind, size = name.split(",")[0].split(" ")
        if kind == axis:
            for program, speed in result["speeds"].items():
                found.setdefault(program, []).append((int(size), 1000 / speed))
    return found


def draw(results: dict[str, dict[str, Any]], folder: Path) -> Path:
    """Writes both plots into one picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for place, axis in zip(figure.subplots(1, 2), TITLES, strict=True):
        for program, points in curves(results, axis).items():
            place.loglog(*zip(*points, strict=True), marker="o", label=program)
        place.set(xlabel=TITLES[axis], ylabel="ms per token")
        place.legend()
    path = folder / "speed.png"
    figure.savefig(path, dpi=150)
    return path
