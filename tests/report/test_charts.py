"""Charts: positions, gaps and read-outs, parsed back from the SVG."""

import json
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from score_jax.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Band,
    Series,
    line_chart,
    show,
    smooth,
    span,
    thin,
    ticks,
)

ONE = [Band(name="s", start=0, end=4)]


def draw(ys, bands=ONE, xs=None, **kwargs):
    segment = (list(range(1, len(ys) + 1)) if xs is None else xs, ys)
    return ET.fromstring(
        str(line_chart([Series(name="a", colour=1, segments=(segment,))], bands, **kwargs))
    )


def paths(svg, style="line c1"):
    return [path.attrib["d"] for path in svg.iter("path") if path.attrib["class"] == style]


def test_points_stand_where_the_axes_put_them():
    svg = draw([0.0, 1.0, 0.5, 1.0])
    (path,) = paths(svg)
    points = [tuple(map(float, pair.split(","))) for pair in re.findall(r"[\d.]+,[\d.]+", path)]
    quarter = (WIDTH - LEFT - RIGHT) / 4
    expected = [LEFT + quarter * n for n in (1, 2, 3, 4)]
    assert [x for x, _ in points] == pytest.approx(expected, abs=0.1)
    # 0 is the lower end of the plot, and 0.5 lies halfway between 0 and 1.
    ys = [y for _, y in points]
    assert ys[0] == pytest.approx(HEIGHT - BOTTOM, abs=0.1)
    assert ys[2] == pytest.approx((ys[0] + ys[1]) / 2, abs=0.1)
    assert TOP < ys[1] < TOP + 20


def test_a_nan_interrupts_the_line():
    (path,) = paths(draw([0.0, 1.0, math.nan, 1.0]))
    assert path.count("M") == 2 and path.count("L") == 1


def test_a_single_point_is_a_visible_dot():
    (path,) = paths(draw([0.5]))
    assert path.endswith("h0.1")


def test_values_that_are_all_nan_or_equal_still_give_a_chart():
    assert paths(draw([math.nan, math.nan])) == []
    assert len(paths(draw([0.0, 0.0]))) == 1


def test_a_long_line_is_a_running_mean_over_the_raw_line():
    svg = draw(np.random.default_rng(0).random(500).tolist())
    (raw,), (line,) = paths(svg, "raw c1"), paths(svg)
    heights = [np.array(re.findall(r",([\d.]+)", path), float) for path in (raw, line)]
    assert heights[1].std() < heights[0].std() / 2
    assert len(heights[1]) == POINTS


def test_read_out_names_stage_and_step_of_each_point():
    bands = [Band(name="one", start=0, end=2), Band(name="two", start=2, end=4)]
    series = Series(name="a'<b>", colour=3, segments=(([1, 2], [0.1, 0.2]), ([3, 4], [0.3, 0.4])))
    svg = ET.fromstring(str(line_chart([series], bands, percent=True)))
    data = json.loads(svg.attrib["data-chart"])
    assert data["names"] == [["a'<b>", 3]]
    assert [row[1:] for row in data["rows"]] == [
        ["one step 1", "10.0%"],
        ["one step 2", "20.0%"],
        ["two step 1", "30.0%"],
        ["two step 2", "40.0%"],
    ]


def test_the_axis_of_attempts_starts_at_one_and_has_no_halves():
    svg = draw([0.1, 0.2, 0.3], [Band(name="", start=1, end=3, first=1)])
    marks = [t.text for t in svg.iter("text") if t.attrib.get("y") == str(HEIGHT - 6)]
    assert marks == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.41, 0.69, [0.5, 0.6]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0, 400, [0, 100, 200, 300, 400]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_span_ignores_a_rare_outlier_and_keeps_zero():
    low, high = span(np.array([0.1] * 150 + [1.0] * 150 + [1e6]))
    assert low == 0 and high < 2


def test_smooth_is_the_mean_of_the_known_neighbours():
    got = smooth([1.0, math.nan, 4.0, 7.0], 3)
    assert got == pytest.approx([1, 2.5, 5.5, 5.5])
    assert math.isnan(smooth([math.nan, math.nan], 2)[0])


def test_thin_keeps_means():
    xs, ys = thin(range(1000), [1.0, 3.0] * 500, most=10)
    assert len(xs) == len(ys) == 10
    assert ys == pytest.approx([2.0] * 10)
    assert xs[0] == pytest.approx(49.5)


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [(0.1234, True, "12.3%"), (0.1234, False, "0.123"), (52123.4, False, "52,123")],
)
def test_numbers_are_written_for_people(value, percent, text):
    assert show(value, percent) == text


def test_a_missing_number_is_said():
    assert show(math.nan) == "n/a"
