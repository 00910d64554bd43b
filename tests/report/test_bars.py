"""Charts that compare models, parsed back from the SVG."""

import xml.etree.ElementTree as ET

import pytest

from score_jax.report.bars import Change, change_chart, histogram_chart
from score_jax.report.charts import BOTTOM, HEIGHT, TOP


def test_bars_are_as_high_as_their_share():
    svg = ET.fromstring(str(histogram_chart([0, 0.5, 1], [3, 1], colour=2, top=1.0)))
    heights = [float(bar.attrib["height"]) for bar in svg.iter("rect")]
    plot = HEIGHT - TOP - BOTTOM
    assert heights == pytest.approx([0.75 * plot, 0.25 * plot], abs=0.1)
    titles = [title.text for title in svg.iter("title")]
    assert titles == ["0.00 to 0.50: 75.0%, 3 pairs", "0.50 to 1.00: 25.0%, 1 pairs"]


def test_a_rare_bar_is_still_seen_and_an_empty_one_is_not():
    svg = ET.fromstring(str(histogram_chart([0, 1, 2, 3], [9999, 1, 0], colour=1, top=1.0)))
    heights = [float(bar.attrib["height"]) for bar in svg.iter("rect")]
    assert heights[1] == 1.5 and heights[2] == 0


def dots(*changes):
    svg = ET.fromstring(str(change_chart(changes)))
    return svg, [float(dot.attrib["cx"]) for dot in svg.iter("circle")]


def test_the_arrow_points_from_the_first_attempt_to_the_second():
    up = Change(name="up", before=(0.4, 0.35, 0.45), after=(0.7, 0.65, 0.75), gain="+30.0")
    down = Change(name="down", before=(0.7, 0.65, 0.75), after=(0.4, 0.35, 0.45), gain="-30.0")
    svg, (up_1, up_2, down_1, down_2) = dots(up, down)
    assert up_1 == down_2 < up_2 == down_1
    tips = [tip.attrib["d"] for tip in svg.iter("path")]
    assert " l5,4" in tips[0] and " l-5,4" in tips[1]
    assert {"up", "down", "+30.0", "-30.0"} <= {text.text for text in svg.iter("text")}


def test_no_arrow_where_nothing_moves():
    same = Change(name="<base>", before=(0.5, 0.4, 0.6), after=(0.5, 0.4, 0.6), gain="0.0")
    svg, (before, after) = dots(same)
    assert before == after and not list(svg.iter("path"))
