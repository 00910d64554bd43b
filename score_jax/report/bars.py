"""SVG charts that compare models: histograms, and accuracy before and after a correction."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from score_jax.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, svg, ticks, y_axis


def histogram_chart(
    edges: Sequence[float], counts: Sequence[int], *, colour: int, top: float, title: str = ""
) -> Markup:
    """Draws shares of a total as bars; `top` is the share at the upper end of the axis."""
    total, width, height = max(1, sum(counts)), WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    first, last = edges[0], edges[-1]

    def across(x: float) -> float:
        return LEFT + (x - first) / (last - first) * width

    def down(y: float) -> float:
        return TOP + (1 - y / top) * height

    parts = [y_axis(0.0, top, down, percent=True)]
    for x in ticks(first, last, 5):
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - 6}" class="mid">{x:g}</text>')
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        share = count / total
        size = max(share / top * height, 1.5 if count else 0)
        parts.append(
            f'<rect class="bar c{colour}" x="{across(start) + 1:.1f}" y="{TOP + height - size:.1f}"'
            f' width="{across(end) - across(start) - 2:.1f}" height="{size:.1f}" rx="1.5">'
            f"<title>{start:.2f} to {end:.2f}: {share:.1%}, {count:,} pairs</title></rect>"
        )
        if count == max(counts):
            middle = across((start + end) / 2)
            parts.append(
                f'<text x="{max(middle, LEFT + 14):.1f}" y="{TOP + height - size - 4:.1f}" '
                f'class="mid ink">{share:.0%}</text>'
            )
    return svg("".join(parts), WIDTH, HEIGHT, title)


@dataclass(frozen=True, kw_only=True)
class Change:
    """A model's accuracy at the first and the last attempt, each with its interval."""

    name: str
    before: tuple[float, float, float]  # value, low, high
    after: tuple[float, float, float]
    gain: str  # text at the right end of the row
    last: str = "second"  # word for the later attempt


def change_chart(changes: Sequence[Change], *, title: str = "") -> Markup:
    """Draws one row per model: the accuracy of the first attempt and that of the last."""
    left, row, width = 84, 34, 460
    height = row * len(changes) + 34
    bounds = [value for c in changes for triple in (c.before, c.after) for value in triple]
    low, high = max(0.0, min(bounds) - 0.04), min(1.0, max(bounds) + 0.07)

    def across(x: float) -> float:
        return left + (x - low) / (high - low) * (width - left - 34)

    parts = []
    for x in ticks(low, high, 5):
        parts.append(
            f'<line class="grid" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="6" '
            f'y2="{height - 24}"/><text x="{across(x):.1f}" y="{height - 8}" class="mid">'
            f"{x:.0%}</text>"
        )
    for index, change in enumerate(changes):
        y = 6 + row * (index + 0.5)
        parts.append(f'<text x="0" y="{y + 4:.1f}" class="ink">{escape(change.name)}</text>')
        parts.append(_change_row(change, y, across))
    return svg("".join(parts), width, height, title)


def _change_row(change: Change, y: float, across) -> str:
    before, after = across(change.before[0]), across(change.after[0])
    right = 1 if after >= before else -1
    parts = []
    for (_, low, high), colour, shift in ((change.before, 1, -6), (change.after, 2, 6)):
        parts.append(
            f'<line class="whisker c{colour}" x1="{across(low):.1f}" x2="{across(high):.1f}" '
            f'y1="{y + shift:.1f}" y2="{y + shift:.1f}"/>'
        )
    if abs(after - before) > 12:
        tip = after - right * 7
        parts.append(
            f'<line class="arrow" x1="{before:.1f}" x2="{tip:.1f}" y1="{y}" y2="{y}"/>'
            f'<path class="tip" d="M{tip:.1f},{y - 4} l{right * 5},4 l{-right * 5},4z"/>'
        )
    for name, x, colour, value in (
        ("first attempt", before, 1, change.before[0]),
        (f"{change.last} attempt", after, 2, change.after[0]),
    ):
        parts.append(
            f'<circle class="dot c{colour}" cx="{x:.1f}" cy="{y}" r="5.5">'
            f"<title>{name}: {value:.1%}</title></circle>"
        )
    edge = max(across(change.before[2]), across(change.after[2]), before + 6, after + 6)
    parts.append(f'<text x="{edge + 5:.1f}" y="{y + 4}" class="ink">{escape(change.gain)}</text>')
    return "".join(parts)
