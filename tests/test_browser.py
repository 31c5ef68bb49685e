"""The page in a real browser: Debian's Chromium, without a network.

Skipped where there is no Chromium; ``apt-get install chromium`` brings it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaling_lab.record import append
from scaling_lab.studies import report
from tests.test_page import run, serving, valley
from tests.test_studies import HOSTILE

playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright; pip install '.[test]'"
)

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"none of {', '.join(NAMES)}; apt-get install chromium"
)
#: As root a sandbox is not to be had; the rest keeps a browser from calling home.
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
SOON = 60_000  # milliseconds that a page is given on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


class Reader:
    """A page, and all that went wrong on it or was asked of a network."""

    def __init__(self, browser: Any, url: str) -> None:
        self.page = browser.new_page()
        self.page.set_default_timeout(SOON)
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.page.on("console", self._hear)
        self.page.goto(url)
        # The filters are shown by the script, and counted when all is drawn.
        self.page.wait_for_selector("form.filters output.shown:has-text('all')")

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def choose(self, facet: str, *values: str) -> None:
        """Ticks boxes of a menu."""
        menu = self.page.locator(f"#filter-{facet}")
        if menu.get_attribute("open") is None:
            menu.locator("summary").click()
        for value in values:
            menu.locator("label", has_text=value).locator("input").click()

    def shown(self, selector: str) -> list[str]:
        """The runs of parts that can be seen."""
        parts = self.page.locator(f"{selector}[data-run]").all()
        return [each.get_attribute("data-run") for each in parts if each.is_visible()]

    def dots(self, place: str) -> list[int]:
        """How many dots each plot of a figure has."""
        plots = self.page.locator(f"{place} svg").all()
        return [plot.locator(DOT).count() for plot in plots]

    def expect(self, selector: str, text: str) -> None:
        """Waits until a part says something."""
        self.page.wait_for_selector(f"{selector}:has-text('{text}')")


DOT = "path[aria-roledescription=point]"


def study() -> list[Any]:
    """Two models on two chips under two layouts, one of them a failure."""
    found = []
    for size in ("8b", "70b"):
        for target in ("h100:1x8", "tpu-v5p:2x2x2"):
            for layout in ("fsdp=8", "tensor=8"):
                id = f"{size}{target[:4]}{layout[:2]}".replace("-", "")
                found.append(run(id, layout, size, target=target))
    found[-1] = run("oomed", "tensor=8", "70b", target="tpu-v5p:2x2x2", status="oom")
    return found


@pytest.fixture
def reader(browser: Any, tmp_path: Path) -> Iterator[Reader]:
    for one in study():
        append(tmp_path, one)
    found = Reader(browser, report(tmp_path).as_uri())
    yield found
    assert not found.wrong
    assert len(found.asked) == 1 and found.asked[0].startswith("file:")
    found.page.close()


def test_a_file_opens_whole_and_shows_every_run_once(reader: Reader) -> None:
    ids = sorted(f"run-{one.id}" for one in study())
    assert sorted(reader.shown(".runs tr")) == ids
    assert sorted(reader.shown(".each > details")) == ids
    assert reader.shown(".failures tr") == ["run-oomed"]
    assert reader.dots("#plot-agreement") == [8, 8, 8]
    labels = reader.page.locator(f"#plot-agreement svg >> nth=0 >> {DOT}").all()
    told = [each.get_attribute("aria-label") for each in labels]
    assert len(set(told)) == 8
    reader.expect(".panel-drawn p", "8 runs, median error")
    assert (
        reader.page.locator("#plot-agreement p")
        .first.inner_text()
        .endswith("8 of 8 within their interval")
    )


def test_filters_act_on_tables_plots_and_lists_at_once(reader: Reader) -> None:
    reader.choose("model", "8b")
    reader.expect(".shown", "4 of 8 runs")
    assert len(reader.shown(".runs tr")) == 4 and not reader.shown(".failures tr")
    assert len(reader.shown(".each > details")) == 4
    assert reader.dots("#plot-agreement") == [4, 4, 4]
    away = reader.page.locator("figure svg g.away[data-run]").all()
    assert away and not any(
        "8bh100" in str(each.get_attribute("data-run")) for each in away
    )
    reader.choose("chip", "tpu-v5p")
    reader.expect(".shown", "2 of 8 runs")
    reader.choose("layout", "tensor=8")
    reader.expect(".shown", "1 of 8 runs")
    assert reader.shown(".runs tr") == ["run-8btpute"]
    assert reader.dots("#plot-agreement") == [1, 1, 1]
    # Each menu counts what it would show beside the other filters.
    reader.page.click("#filter-layout summary")
    counts = reader.page.locator("#filter-model small").all_inner_texts()
    assert [
        int(each)
        for each in reader.page.locator("#filter-model small").all_text_contents()
    ] == [1, 1], counts
    reader.page.click("button.clear")
    reader.expect(".shown", "all 8 runs")
    assert len(reader.shown(".runs tr")) == 8
    assert reader.dots("#plot-agreement") == [8, 8, 8]


def test_values_of_one_menu_add_up(reader: Reader) -> None:
    reader.choose("layout", "fsdp=8", "tensor=8")
    reader.expect(".shown", "all 8 runs")
    reader.expect("#filter-layout .chosen", "2 of 2")
    reader.choose("layout", "fsdp=8")  # and away again
    reader.expect(".shown", "4 of 8 runs")
    assert all(
        each.endswith("te") or each == "run-oomed" for each in reader.shown(".runs tr")
    )


def test_another_quantity_keeps_the_filters(reader: Reader) -> None:
    reader.choose("chip", "h100")
    reader.expect(".shown", "4 of 8 runs")
    reader.page.keyboard.press("Escape")
    reader.page.select_option("#quantity", "peak_bytes")
    reader.expect(".panel-drawn p", "4 runs, median error 20.0 %")
    assert reader.dots("#plot-agreement") == [4]


def test_a_dot_leads_to_its_run_and_the_run_to_its_record(reader: Reader) -> None:
    reader.choose("model", "8b")
    reader.choose("chip", "h100")
    reader.choose("layout", "fsdp=8")
    reader.expect(".shown", "1 of 8 runs")
    reader.page.keyboard.press("Escape")
    reader.page.locator(f"#plot-agreement svg >> nth=0 >> {DOT}").click()
    opened = reader.page.locator(".each > details[open]")
    assert opened.get_attribute("id") == "run-8bh100fs"
    link = opened.locator("a.to-record")
    assert link.get_attribute("href") == "records.jsonl"
    assert link.inner_text() == "records.jsonl, line 1"


def test_sorting_and_filters_live_together(reader: Reader) -> None:
    reader.page.click(".runs th button:text('size')")
    first = reader.shown(".runs tr")
    reader.choose("chip", "h100")
    reader.expect(".shown", "4 of 8 runs")
    assert reader.shown(".runs tr") == [each for each in first if "h100" in each]


def test_loss_by_compute_has_its_frontier(browser: Any, tmp_path: Path) -> None:
    reader = Reader(browser, report(valley(), tmp_path / "p.html").as_uri())
    plot = "#plot-loss svg"
    # Twenty runs and four ringed optima; a frontier is the one dashed line.
    assert reader.dots("#plot-loss") == [24]
    assert reader.page.locator(f"{plot} path[stroke-dasharray='5,3']").count() == 1
    reader.choose("model", f"{round(3e12**0.5 / 10)}")
    reader.expect(".shown", "1 of 20 runs")
    assert reader.dots("#plot-loss") == [5]
    assert reader.page.locator(f"{plot} path[stroke-dasharray='5,3']").count() == 1
    assert not reader.wrong
    reader.page.close()


def test_hostile_words_are_only_words(browser: Any, tmp_path: Path) -> None:
    runs = [run("a", HOSTILE, HOSTILE), run("b", "</script><script>alert(2)</script>")]
    reader = Reader(browser, report(runs, tmp_path / "p.html").as_uri())
    reader.choose("layout", "alert(2)")
    reader.expect(".shown", "1 of 2 runs")
    assert reader.shown(".runs tr") == ["run-b"] and not reader.wrong
    assert reader.page.locator("img").count() == 0
    reader.page.close()


def test_the_live_page_follows_a_record_that_is_added(
    browser: Any, tmp_path: Path
) -> None:
    runs = study()
    with serving(tmp_path) as server:
        page = browser.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda said: wrong.append(said.text) if said.type == "error" else None,
        )
        page.set_default_timeout(SOON)
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        page.wait_for_selector("text=No run has ended yet")
        page.evaluate("window.untouched = true")
        for one in runs[:4]:
            append(tmp_path, one)
        page.wait_for_selector(".shown:has-text('all 4 runs')")
        page.click("#filter-layout summary")
        page.locator("#filter-layout label", has_text="fsdp=8").locator("input").click()
        page.wait_for_selector(".shown:has-text('2 of 4 runs')")
        page.locator(".each > details:visible summary").first.click()
        append(tmp_path, runs[4])
        page.wait_for_selector(".shown:has-text('3 of 5 runs')")
        # It was no reload, and what the reader did is as it was.
        assert page.evaluate("window.untouched")
        assert page.locator(".each > details[open]").count() == 1
        assert page.locator("#filter-layout input:checked").count() == 1
        assert page.locator(f"#plot-agreement svg >> nth=0 >> {DOT}").count() == 3
        page.wait_for_selector(".live:has-text('Live: follows the records')")
        assert not wrong
    page.wait_for_selector(".live.lost:has-text('the server does not answer')")
    page.close()
