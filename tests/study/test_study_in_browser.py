"""A study's page in a real browser: figures drawn, nothing fetched, keyboard, phone and print; 2,000 trials too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_study import made_study, made_trials
from playwright.sync_api import Browser, Page

from chromium import launched
from largebatch.study.ledger import write_study, write_trials
from largebatch.study.plan import Job
from largebatch.study.report import write_report
from largebatch.study.space import Interval, Point, quasi_random

FIGURES = ("scores", "curves", "targets", "trials")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as opened:
        yield opened


def made_page(folder: Path, points: int, batches: tuple[int, ...], methods: tuple[str, ...]) -> Path:
    """A page of a study, a tenth of whose trials diverge."""

    def score(job: Job, point: Point) -> float | None:
        if job.kind == "tuning" and job.number % 10 == 9:
            return None
        batch = int(job.arm.rpartition(" ")[2].replace(",", ""))
        return min(0.99, 0.4 + 0.05 * job.number / points + 1.5 / batch**0.5)

    space = {"lr": Interval(1e-4, 1.0), "weight_decay": Interval(1e-5, 0.1), "warmup": Interval(0.0, 0.5, "linear")}
    study = made_study(methods, batches, search=quasi_random(space, points), target=0.4, seeds=5)
    write_study(folder, study, {"command": "largebatch study made", "versions": {}})
    write_trials(folder, study, made_trials(study, score))
    return write_report(folder)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_page(tmp_path_factory.mktemp("study"), 12, (16, 64, 256), ("LAMB", "LARS", "AdamW"))


def opened(browser: Browser, path: Path, **options: Any) -> tuple[Page, list[str], list[str]]:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    complaints: list[str] = []
    fetched: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert complaints == []
    assert [url for url in fetched if not url.startswith(("file:", "data:", "blob:"))] == []
    return page, complaints, fetched


def drawn(page: Page, identifier: str) -> int:
    return page.locator(f"#{identifier} .scatterlayer path.js-line, #{identifier} .scatterlayer path.point").count()


def test_every_figure_is_drawn(browser: Browser, page_file: Path) -> None:
    page, _, _ = opened(browser, page_file)
    for identifier in FIGURES:
        assert drawn(page, identifier) > 0, identifier
    assert page.locator("#scores .errorbars").count() > 0
    assert drawn(page, "scores") >= 3 * 3 * 6  # three methods at three batches: five seeds and their mean each
    page.context.close()


def test_a_curve_is_switched_by_the_keyboard(browser: Browser, page_file: Path) -> None:
    page, _, _ = opened(browser, page_file)
    before = drawn(page, "scores")
    button = page.locator("figure:has(#scores) .legend button").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    page.wait_for_function(f"document.querySelectorAll('#scores .scatterlayer path.point').length < {before}")
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    page.context.close()


def test_methods_are_told_apart_without_colour(page_file: Path) -> None:
    from largebatch.study.charts import figures
    from largebatch.study.findings import find
    from largebatch.study.ledger import read_study, read_trials

    study, _ = read_study(page_file.parent)
    for figure in figures(find(study, read_trials(page_file.parent, study))):
        if figure.identifier == "scores":
            marks = {(trace["symbol"], trace["dash"]) for trace in figure.traces}
            assert len(marks) == len(study.methods)


@pytest.mark.parametrize(
    "options", [{"viewport": {"width": 390, "height": 844}, "is_mobile": True}, {"color_scheme": "dark"}]
)
def test_it_fits_a_phone_and_the_dark(browser: Browser, page_file: Path, options: dict[str, Any]) -> None:
    page, _, _ = opened(browser, page_file, **options)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    for identifier in FIGURES:
        assert drawn(page, identifier) > 0, identifier
    page.context.close()


def test_it_prints(browser: Browser, page_file: Path) -> None:
    page, _, _ = opened(browser, page_file)
    assert len(page.pdf()) > 20_000
    page.context.close()


def test_two_thousand_trials_are_one_page_of_less_than_ten_megabytes(browser: Browser, tmp_path: Path) -> None:
    path = made_page(tmp_path, 330, (16, 64), ("LAMB", "LARS", "AdamW"))
    assert path.stat().st_size < 10e6
    page, _, _ = opened(browser, path)
    assert page.locator("#searched tbody tr").count() >= 6 * 330
    assert drawn(page, "trials") > 0
    page.context.close()
