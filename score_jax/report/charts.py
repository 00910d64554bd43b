"""Small SVG charts for a page without scripts or network.

Colours are the classes c1..c9 of the page's style sheet, so charts follow its light
and dark themes. Each chart is drawn in a fixed view box and scales with its column.
A line chart stores its numbers in `data-chart`; the page shows them under the pointer.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 380, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 18, 22
POINTS = 160  # per segment; about what a line of 300 pixels can show


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: a name, a colour class, and a segment of (x, y) per stage."""

    name: str
    colour: int  # 1..9
    segments: tuple[tuple[Sequence[float], Sequence[float]], ...]


@dataclass(frozen=True, kw_only=True)
class Band:
    """The section of the x axis that one stage takes."""

    name: str
    start: float
    end: float
    first: float = 0.0  # axis label at `start`
    doubled: int = 0  # labels are this number, doubled x times; 0: x itself

    def label(self, x: float) -> float:
        """The number that stands for a place on the axis."""
        return self.doubled * 2**x if self.doubled else x


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A place on the x axis where something happened."""

    x: float
    text: str  # shown under the pointer


def show(value: float, percent: bool = False) -> str:
    """Formats a value for display, in percent if asked; "n/a" where it is not finite."""
    if not math.isfinite(value):
        return "n/a"
    if percent:
        return f"{100 * value:.1f}%"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Running mean over up to `window` values around each; NaN only where all are NaN."""
    array = np.asarray(values, float)
    known = np.isfinite(array)
    kernel = np.ones(min(window, len(array)))
    sums = np.convolve(np.where(known, array, 0.0), kernel, mode="same")
    counts = np.convolve(known.astype(float), kernel, mode="same")
    return np.divide(sums, counts, out=np.full(len(array), np.nan), where=counts > 0)


def thin(xs: Sequence[float], ys: Sequence[float], most: int = POINTS) -> tuple[list, list]:
    """Means of equal runs of points, so that at most `most` remain."""
    if len(xs) <= most:
        return list(xs), list(ys)
    groups = np.array_split(np.arange(len(xs)), most)
    x, y = np.asarray(xs, float), smooth(ys, 1)
    kept = [group[np.isfinite(y[group])] for group in groups]
    means = [float(y[group].mean()) if len(group) else math.nan for group in kept]
    return [float(x[group].mean()) for group in groups], means


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers from low to high."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step = next(step * k for k in (1, 2, 5, 10) if step * k * count >= (high - low) * 0.8)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def span(values: np.ndarray) -> tuple[float, float]:
    """The y range: 1st to 99th percentile, extended to 0 where the low end is near it."""
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = (float(v) for v in np.quantile(values, (0.01, 0.99)))
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    return (low if low == 0.0 else low - room), high + room


def line_chart(
    series: Sequence[Series],
    bands: Sequence[Band],
    *,
    percent: bool = False,
    title: str = "",
    marks: Sequence[Mark] = (),
) -> Markup:
    """Draws lines over consecutive stages; a long one gets its running mean on top."""
    drawn = [_prepare(line) for line in series]
    values = np.concatenate([ys for raw, _, _ in drawn for _, ys in raw] or [np.zeros(0)])
    low, high = span(values)
    left, right = bands[0].start, max(bands[-1].end, bands[0].start + 1)

    def across(x: float) -> float:
        return LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [y_axis(low, high, down, percent), _x_axis(bands, across)]
    for mark in marks:
        x = f"{across(mark.x):.1f}"
        parts.append(
            f'<line class="mark" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
            f"<title>{escape(mark.text)}</title></line>"
        )
    inner = []
    for line, (raw, means, window) in zip(series, drawn, strict=True):
        if window > 1:
            inner += [_path(xs, ys, across, down, f"raw c{line.colour}") for xs, ys in raw]
        inner += [_path(xs, ys, across, down, f"line c{line.colour}") for xs, ys in means]
    parts.append(_clip("".join(inner)))
    data = _readout(series, [means for _, means, _ in drawn], bands, across, percent)
    return svg("".join(parts), WIDTH, HEIGHT, title, data)


def _prepare(line: Series) -> tuple[list, list, int]:
    """Raw segments, their running means, and the longest window used (1: none)."""
    raw, means, longest = [], [], 1
    for xs, ys in line.segments:
        window = max(1, len(xs) // 15) if len(xs) >= 30 else 1
        longest = max(longest, window)
        raw.append(thin(xs, ys))
        means.append(thin(xs, smooth(ys, window).tolist()))
    return raw, means, longest


def _path(xs: Sequence[float], ys: Sequence[float], across, down, style: str) -> str:
    """A polyline that is interrupted where y is NaN; a single point becomes a dot."""
    pieces, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        pieces.append(f"{pen}{across(x):.1f},{down(y):.1f}")
        pen = "L"
    if len(pieces) == 1:
        pieces.append("h0.1")
    return f'<path class="{style}" d="{"".join(pieces)}"/>' if pieces else ""


def _clip(inner: str) -> str:
    # A nested <svg> clips its content, so that outliers are not drawn outside the axes.
    width, height = WIDTH - LEFT - RIGHT + 4, HEIGHT - TOP - BOTTOM + 4
    x, y = LEFT - 2, TOP - 2
    box = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    return f'<svg {box} viewBox="{x} {y} {width} {height}">{inner}</svg>'


def y_axis(low: float, high: float, down, percent: bool) -> str:
    """Draws tick labels and grid lines; `down` maps a value to a y pixel."""
    parts = []
    marks = ticks(low, high)
    digits = 0 if not percent or len(marks) < 2 or marks[1] - marks[0] >= 0.01 else 1
    for value in marks:
        text = f"{100 * value:.{digits}f}%" if percent else f"{value:,.10g}"
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(value):.1f}" '
            f'y2="{down(value):.1f}"/><text x="{LEFT - 6}" y="{down(value) + 3.5:.1f}" '
            f'class="end">{text}</text>'
        )
    return "".join(parts)


def _x_axis(bands: Sequence[Band], across) -> str:
    parts = []
    total = bands[-1].end - bands[0].start
    for index, band in enumerate(bands):
        length = band.end - band.start
        if index:
            x = f"{across(band.start):.1f}"
            parts.append(f'<line class="border" x1="{x}" x2="{x}" y1="4" y2="{HEIGHT - BOTTOM}"/>')
        if band.name:
            parts.append(
                f'<text x="{across(band.start) + 4:.1f}" y="12">{escape(band.name)}</text>'
            )
        count = max(1, round(5 * length / total)) if length > 0 else 0
        for mark in ticks(band.first, band.first + length, count) if count else [band.first]:
            step = mark - band.first
            if (step == 0 and index) or mark % 1:
                continue  # the previous stage's last label is here; steps are whole numbers
            x = min(across(band.start + step), WIDTH - RIGHT - 8)
            parts.append(
                f'<text x="{x:.1f}" y="{HEIGHT - 6}" class="mid">{band.label(mark):g}</text>'
            )
    return "".join(parts)


def _readout(series, means, bands: Sequence[Band], across, percent: bool) -> str:
    """JSON that the page shows under the pointer: pixel, caption and each line's value per x."""
    columns: dict[float, dict[int, str]] = {}
    for index, segments in enumerate(means):
        for xs, ys in segments:
            for x, y in zip(xs, ys, strict=True):
                columns.setdefault(x, {})[index] = show(y, percent)
    rows = []
    for x in sorted(columns):
        band = next((b for b in reversed(bands) if x > b.start), bands[0])
        unit = "samples" if band.doubled else "attempt"
        caption = f"{band.name} step {x - band.start:.0f}" if band.name else ""
        caption = caption or f"{unit} {band.label(x):g}"
        shown = [columns[x].get(index, "") for index in range(len(series))]
        rows.append([round(across(x), 1), caption, *shown])
    names = [[line.name, line.colour] for line in series]
    return json.dumps({"names": names, "rows": rows}, separators=(",", ":"))


def svg(inner: str, width: int, height: int, title: str, data: str = "") -> Markup:
    """Wraps drawn parts in an <svg>; `data` is the JSON shown under the pointer."""
    # Single-quoted attribute: escaping every double quote of the JSON would double its size.
    quoted = data.replace("&", "&amp;").replace("'", "&#39;").replace("<", "&lt;")
    extra = f" data-chart='{quoted}'" if data else ""
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}"{extra}>{inner}</svg>'
    )
