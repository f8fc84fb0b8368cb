"""The rendered documentation: it builds without a warning, and its formulas and tables show what they should."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from chromium import launched

ROOT = Path(__file__).parents[1]
FORMULAS = {"LAMB": 3, "LARS": 4, "LANS": 5, "Layerwise": 1, "StepMonitor": 1}
"""How many lines the formula in the docstring of each class has, at least."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(out / "cache")]
    told = subprocess.run(
        [*command, str(ROOT / "docs"), str(out / "html")], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    return out / "html"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with launched() as browser:
        yield browser.new_page(viewport={"width": 1280, "height": 900})


def test_every_formula_of_a_docstring_is_in_the_page(site: Path) -> None:
    html = (site / "optimizers.html").read_text(encoding="utf-8")
    for name in FORMULAS:
        start = html.index(f'id="largebatch.optim.{name}"')
        section = html[start : html.index("</dl>", start)]
        assert "<math" in section, name
        assert "\\frac" not in section, "LaTeX is left in the page"
        assert "&amp;=" not in section


def test_a_browser_shows_formulas_as_formulas(site: Path, page: Page) -> None:
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    page.goto((site / "optimizers.html").as_uri())
    for name, lines in FORMULAS.items():
        entry = page.locator(f'dt[id="largebatch.optim.{name}"] + dd')
        rows = entry.locator(".formula mtr").count() or entry.locator(".formula math").count()
        assert rows >= lines, name
        boxes = [box for box in (formula.bounding_box() for formula in entry.locator(".formula math").all()) if box]
        assert boxes, name
        assert all(box["width"] > 100 and box["height"] > 12 for box in boxes)
    assert page.locator(".formula mfrac").count() >= 5, "fractions are fractions"
    assert not [url for url in fetched if not url.startswith(("file:", "data:"))], "nothing is fetched"


def test_no_page_scrolls_sideways(site: Path, page: Page) -> None:
    for name in ("index", "optimizers", "algorithms"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), name


def test_the_table_of_peers_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "step_length.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    for found in (measured["lamb"], measured["lars"]):
        for name, entry in found.items():
            (row,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", text, re.MULTILINE)
            cells = [cell.strip() for cell in row.split("|")]
            lengths = [" ".join(f"{value:.3g}" for value in steps.values()) for steps in entry["lengths"].values()]
            assert cells[:3] == lengths, name
            assert cells[3] == f"{max(entry['apart'].values()):.1e}", name
    assert measured["lamb"]["largebatch LAMB, float32"]["apart"]["norm 1"] < 1e-5
