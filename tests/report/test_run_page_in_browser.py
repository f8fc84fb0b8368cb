"""The report in a real browser, from a file: figures drawn, nothing fetched, no complaint, phone and dark."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made_run import LAYERS, make_lines, make_record, write_run
from playwright.sync_api import Browser, Page

from chromium import launched
from largebatch.report.run_page import write_report

CURVES = ("held-out-loss", "held-out-accuracy", "loss", "learning-rate", "loss-terms", "gradient-norm", "throughput")
CURVES += ("noise-scale", "noise-by-layer")
HOSTILE = "</script><script>window.hostile = 1</script><img src=x onerror='window.hostile = 2'>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as opened:
        yield opened


@dataclass
class Watched:
    """A page and everything it complained about or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def assert_silent(self) -> None:
        assert self.complaints == []
        assert [url for url in self.fetched if not url.startswith(("file:", "data:", "blob:"))] == []


Opener = Callable[..., Watched]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Opener]:
    contexts = []

    def opened(path: Path, **options: Any) -> Watched:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        watched = Watched(context.new_page())
        watched.page.on("console", lambda message: watched.complaints.append(f"{message.type}: {message.text}"))
        watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        watched.page.on("dialog", lambda dialog: watched.complaints.append(dialog.message))
        watched.page.on("request", lambda request: watched.fetched.append(request.url))
        watched.page.goto(path.as_uri())
        watched.page.wait_for_selector("html[data-drawn]", state="attached")
        return watched

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    record = make_record()
    return write_report(write_run(tmp_path_factory.mktemp("run"), record, make_lines(record)))


# What a figure shows, measured on what the browser drew: for each curve its points and its extent in pixels.
DRAWN = """identifier => {
  const plot = document.getElementById(identifier).querySelector(".scatterlayer");
  return [...plot.querySelectorAll("path.js-line, path.point")].map(path => {
    const box = path.getBBox();
    return {line: path.classList.contains("js-line"), points: (path.getAttribute("d").match(/[ML]/g) || []).length,
            width: box.width, height: box.height};
  });
}"""

# How many colours the heat map's picture has, and its size on the page.
COLOURS = """async () => {
  const image = document.querySelector("#trust-ratio-map .heatmaplayer image");
  if (!image) return {colours: 0, width: 0, height: 0};
  const picture = new Image();
  picture.src = image.getAttribute("href") || image.getAttribute("xlink:href");
  await picture.decode();
  const canvas = document.createElement("canvas");
  canvas.width = picture.width; canvas.height = picture.height;
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, picture.width, picture.height).data;
  const seen = new Set();
  for (let i = 0; i < pixels.length; i += 4) seen.add(pixels[i] + "," + pixels[i + 1] + "," + pixels[i + 2]);
  const box = image.getBoundingClientRect();
  return {colours: seen.size, width: box.width, height: box.height};
}"""

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def wait_until(page: Page, expression: str) -> None:
    """Wait for an expression to hold; the page's policy forbids what ``wait_for_function`` would do."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{expression} never held")


def has_curve(page: Page, identifier: str, points: int = 5) -> bool:
    return any(
        path["line"] and path["points"] >= points and path["width"] > 100 and path["height"] > 20
        for path in page.evaluate(DRAWN, identifier)
    )


def test_the_figures_are_drawn_without_a_complaint(open_page: Opener, report: Path) -> None:
    watched = open_page(report)
    for identifier in CURVES:
        assert has_curve(watched.page, identifier), identifier
    (rate,) = watched.page.evaluate(DRAWN, "learning-rate")
    assert rate["width"] > 900
    assert 100 < rate["height"] < 220
    drawn = watched.page.evaluate(COLOURS)
    assert drawn["colours"] > 50
    assert drawn["width"] > 600
    assert drawn["height"] > 200
    assert watched.page.locator("#trust-ratio-map .ytick text").count() == len(LAYERS)
    for identifier in (*CURVES, "trust-ratio-map"):  # the boundary of the stages, and their names
        assert watched.page.locator(f"#{identifier} .shapelayer path").count() >= 2
        assert "length-128" in watched.page.locator(f"#{identifier} .annotation").all_text_contents()
    watched.assert_silent()
    assert [url for url in watched.fetched if url.startswith("file:")] == [report.as_uri()]


def test_the_checks_notice_what_is_missing(open_page: Opener, report: Path, tmp_path: Path) -> None:
    """An empty curve, a page that fetches, and one that is too wide must not pass."""
    page = report.read_text("utf-8")
    broken = tmp_path / "broken.html"
    wrong = page.replace("y: series.y,", "y: series.y.map(() => null),").replace("z: ratios.z,", "z: [],")
    wrong = wrong.replace("<footer>", '<img src="https://example.com/x.png" alt=""><div style="width:3000px">x</div>')
    assert wrong.count("series.y.map(() => null)") == 1
    broken.write_text(wrong, "utf-8")
    watched = open_page(broken)
    assert not any(has_curve(watched.page, identifier) for identifier in CURVES)
    assert watched.page.evaluate(COLOURS)["colours"] <= 50
    assert watched.page.evaluate(OVERFLOW) > 0
    with pytest.raises(AssertionError):
        watched.assert_silent()


def test_steps_and_samples_can_be_switched(open_page: Opener, report: Path) -> None:
    page = open_page(report).page
    assert page.locator("#loss .xtitle").text_content() == "steps"
    before = page.evaluate(DRAWN, "learning-rate")
    page.get_by_label("samples", exact=True).check()
    page.wait_for_selector('html[data-drawn="samples"]', state="attached")
    for identifier in (*CURVES, "trust-ratio-map"):
        assert page.locator(f"#{identifier} .xtitle").text_content() == "samples"
    assert page.evaluate("document.getElementById('loss').layout.xaxis.range[1]") >= 72_960
    boundary = page.evaluate("document.getElementById('loss').layout.shapes.find(s => s.type === 'line').x0")
    assert boundary == 69_120
    assert page.evaluate(DRAWN, "learning-rate") != before  # stage 2 is narrower over samples than over steps
    page.get_by_label("steps", exact=True).check()
    page.wait_for_selector('html[data-drawn="steps"]', state="attached")
    assert page.evaluate(DRAWN, "learning-rate") == before


def test_it_can_be_used_by_keyboard(open_page: Opener, report: Path) -> None:
    watched = open_page(report)
    page = watched.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the figures"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.value") == "steps"
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('html[data-drawn="samples"]', state="attached")
    page.keyboard.press("Tab")
    button = page.locator("#held-out .legend button").first
    assert page.evaluate("document.activeElement.textContent") == button.inner_text() == "model"
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "false"
    assert not has_curve(page, "held-out-loss")
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "true"
    assert has_curve(page, "held-out-loss")
    watched.assert_silent()


def test_everything_has_a_name(open_page: Opener, report: Path) -> None:
    page = open_page(report).page
    nameless = """() => [...document.querySelectorAll("button, input, summary, [role]")]
      .filter(e => !(e.getAttribute("aria-label") || e.textContent.trim() || (e.labels && e.labels.length)))
      .map(e => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    assert page.locator("h1").count() == 1
    assert page.locator("figure").count() == page.locator("figcaption").count() == len(CURVES) + 1
    page.locator("#training summary").first.click()
    rows = page.get_by_role("region", name="Numbers of Loss", exact=True).locator("tbody tr")
    held_out = [rows.nth(row).locator("td").last.inner_text() for row in range(rows.count())]
    assert len(held_out) == 26  # 25 evenly spread steps, and one between them that was evaluated
    assert sum(bool(re.fullmatch(r"\d\.\d+", number)) for number in held_out) == 7


@pytest.mark.parametrize("width", [320, 375])
def test_it_fits_a_phone(open_page: Opener, report: Path, width: int) -> None:
    watched = open_page(report, viewport={"width": width, "height": 812}, is_mobile=True, has_touch=True)
    assert watched.page.evaluate("window.innerWidth") == width
    assert watched.page.evaluate(OVERFLOW) == 0
    for identifier in CURVES:
        assert has_curve(watched.page, identifier), identifier
        box = watched.page.locator(f"#{identifier}").bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        svg = watched.page.locator(f"#{identifier} svg.main-svg").first.bounding_box()
        assert svg
        assert svg["width"] <= box["width"] + 1
    assert watched.page.evaluate(COLOURS)["width"] > width / 4
    watched.assert_silent()


def test_it_follows_the_window(open_page: Opener, report: Path) -> None:
    page = open_page(report).page
    page.set_viewport_size({"width": 375, "height": 812})
    wait_until(page, "document.getElementById('loss').layout.width < 375")
    assert page.evaluate(OVERFLOW) == 0


def test_light_dark_and_paper_have_their_own_colours(open_page: Opener, report: Path) -> None:
    ink = """getComputedStyle(document.querySelector("#learning-rate path.js-line")).stroke"""
    paper = "getComputedStyle(document.body).backgroundColor"
    watched = open_page(report, color_scheme="light")
    page = watched.page
    light, light_paper = page.evaluate(ink), page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    wait_until(page, f"{ink} !== '{light}'")
    assert page.evaluate(paper) != light_paper
    page.emulate_media(color_scheme="dark", media="print")
    wait_until(page, f"{ink} === '{light}'")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    watched.assert_silent()


def test_hostile_names_stay_text(open_page: Opener, tmp_path: Path) -> None:
    record = make_record(recipe_name=HOSTILE)
    record["run"]["stages"][0]["name"] = HOSTILE
    lines = make_lines(record)
    for line in lines:
        if line["kind"] == "layers":
            line["ratios"] = {name.replace("query", HOSTILE): ratio for name, ratio in line["ratios"].items()}
        if line["kind"] == "train":
            line["losses"][HOSTILE] = 1.0
    watched = open_page(write_report(write_run(tmp_path, record, lines)))
    page = watched.page
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.evaluate("window.hostile") is None
    assert page.locator("img").count() == 0
    labels = page.locator("#trust-ratio-map .ytick text").all_text_contents()
    assert [label for label in labels if "query" in label or "hostile" in label]
    assert f"encoder.layer.0.attention.self.{HOSTILE}" in labels
    button = page.locator("#training .legend button", has_text="hostile")
    assert button.count() == 1
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert page.evaluate(OVERFLOW) == 0
    watched.assert_silent()


def test_runs_with_little_to_show(open_page: Opener, tmp_path: Path) -> None:
    record = make_record()
    for steps in (0, 1):
        folder = write_run(tmp_path / str(steps), record, make_lines(record, steps=steps))
        watched = open_page(write_report(folder))
        assert watched.page.locator(".plot").count() == (5 if steps else 0)
        watched.assert_silent()
