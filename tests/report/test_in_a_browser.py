"""Both pages in a real browser: nothing fails, nothing sticks out, and what can be used works.

    pip install -e '.[browser]' && pytest -m slow tests/report/test_in_a_browser.py

Takes the Chromium of the system (or of the variable CHROMIUM); none is downloaded.
"""

import json
import os
import shutil

import pytest

from score_jax.report import comparison_page
from score_jax.report.page import write_report
from tests.report import test_comparison
from tests.report.test_page import write_run

pytestmark = pytest.mark.slow
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDTHS = {390: 844, 1400: 900}  # a phone's and a desk's: width, height
workdir = test_comparison.workdir  # a comparison's folder


@pytest.fixture(scope="module")
def browser():
    library = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with library.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens a file at a width; at the end nothing may have failed or been asked of a network."""
    faults, opened = [], []

    def go(path, width):
        page = browser.new_page(viewport={"width": width, "height": WIDTHS[width]})
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: check(request.url))
        page.goto(path.as_uri())
        opened.append(page)
        return page

    def check(url):
        if not url.startswith(("file:", "data:")):
            faults.append(f"asks for {url}")

    yield go
    for page in opened:
        page.close()
    assert faults == []


def sticks_out(page):
    """Elements that reach over the page's right edge without a scroll bar of their own."""
    return page.evaluate(
        """() => {
          const found = [], right = document.documentElement.clientWidth;
          const scrolls = (x) => x && (["auto", "scroll", "hidden"]
            .includes(getComputedStyle(x).overflowX) || scrolls(x.parentElement));
          for (const x of document.querySelectorAll("body *"))
            if (x.getBoundingClientRect().right > right + 1 && !scrolls(x.parentElement))
              found.push(x.tagName + ": " + x.textContent.trim().slice(0, 40));
          return found;
        }"""
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A run's page, with enough steps for curves."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, evil="a long word that nobody breaks: " + "x" * 200)
    for name in ("stage1", "stage2"):
        rows = [
            {"step": n, "accuracy/turn1": n / 50, "accuracy/turn2": n / 40, "kl/turn2": n / 9}
            for n in range(1, 31)
        ]
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return write_report(folder)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_fits_the_screen(visit, report, width):
    page = visit(report, width)
    assert sticks_out(page) == []
    page.evaluate("for (const x of document.querySelectorAll('details')) x.open = true")
    assert sticks_out(page) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_filters_leave_the_dialogues_of_one_outcome(visit, report, width):
    page = visit(report, width)
    cards = page.locator(".dialogues article:visible")
    whole = cards.count()
    assert whole == 2
    shown = {}
    for label in page.locator(".filters label").all():
        label.click()
        told = int(label.locator("span").inner_text().split()[0])
        shown[label.get_attribute("for")] = cards.count()
        assert cards.count() == told
    assert shown["show-all"] == whole == sum(shown.values()) - whole


@pytest.mark.parametrize("width", WIDTHS)
def test_details_open_and_close(visit, report, width):
    page = visit(report, width)
    fields = page.locator("details", has_text="Full config").last
    table = fields.locator("table")
    assert not table.is_visible()
    fields.locator("summary").click()
    assert table.is_visible()
    fields.locator("summary").click()
    assert not table.is_visible()


@pytest.mark.parametrize("width", WIDTHS)
def test_pointing_at_a_chart_reads_it(visit, report, width):
    page = visit(report, width)
    readout = page.locator("#readout")
    assert not readout.is_visible()
    charts = page.locator("svg[data-chart]:visible")
    assert charts.count() >= 2
    for chart in charts.all():
        rows = json.loads(chart.get_attribute("data-chart"))["rows"]
        chart.scroll_into_view_if_needed()
        chart.hover()
        if not rows:
            continue
        assert readout.is_visible()
        first = readout.inner_text().splitlines()[0]
        assert first in {row[1] for row in rows}
        box = readout.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
    page.mouse.move(1, 1)
    assert not readout.is_visible()


def test_links_of_the_bar_lead_to_sections(visit, report):
    page = visit(report, 1400)
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_fits_the_screen(visit, workdir, width):
    page = visit(comparison_page.write(workdir), width)
    assert "the score" in page.inner_text("body")
    assert sticks_out(page) == []
    broken = "x => x.filter(y => !y.complete || !y.naturalWidth).length"
    assert page.locator("img").evaluate_all(broken) == 0
