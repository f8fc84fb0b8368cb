"""A page: one HTML file that needs no network, no server and no other file, and the pieces it is put together from."""

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from largebatch.aside import write_aside
from largebatch.errors import InputError
from largebatch.report.charts import Table
from largebatch.report.markup import Markup, asset, element, script_data
from largebatch.report.tables import table

# The page may run what stands in it and fetch nothing at all; data: and blob: are Plotly's own pictures.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def document(title: str, sections: Sequence[Markup | None], data: dict[str, Any], script: str, *, drawn: bool) -> str:
    """Return a page as HTML text.

    Args:
        title: of the browser's window.
        sections: of the body, in order.
        data: what the script draws.
        script: which of the package's scripts does.
        drawn: False leaves Plotly out, where there is nothing to draw.
    """
    from plotly.offline import get_plotlyjs

    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title} · largebatch report"),
        asset("style", _asset_text("page.css")),
    )
    body = element(
        "body",
        element("a", "Skip to the figures", class_="skip", href="#figures"),
        element("noscript", element("p", "The figures need JavaScript; the numbers below them do not.", class_="lead")),
        element("main", *sections),
        element("footer", element("p", "Written by largebatch. This page is one file and loads nothing.")),
        script_data("page-data", data),
        asset("script", get_plotlyjs()) if drawn else None,
        asset("script", _asset_text("figures.js")),
        asset("script", _asset_text(script)),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _asset_text(name: str) -> str:
    return resources.files("largebatch.report").joinpath(name).read_text(encoding="utf-8")


def write_page(path: Path, page: str) -> Path:
    """Write a page aside and rename it; raises InputError where that cannot be done."""
    try:
        write_aside(path, page)
    except OSError as error:
        raise InputError(f"the report {path} cannot be written: {error.strerror or error}") from error
    return path


def fact_list(facts: Iterable[tuple[str, str, str]]) -> Markup:
    """Return (title, what it is, note or nothing) side by side, as a page's head has them."""
    return element(
        "dl",
        *(
            element("div", element("dt", title), element("dd", shown, element("small", note) if note else None))
            for title, shown, note in facts
        ),
        class_="facts",
    )


def command_block(command: str) -> Markup:
    """Return a command that can be scrolled and copied."""
    return element("pre", element("code", command), tabindex=0, role="region", aria_label="Command")


def section(identifier: str, title: str, about: str, figures: Sequence[Markup]) -> Markup | None:
    """Put figures under a title; None if there are none."""
    if not figures:
        return None
    return element(
        "section",
        element("h2", title),
        element("p", about, class_="about"),
        element("div", *figures, class_="figures"),
        id=identifier,
        class_="part",
    )


def legend(title: str, entries: Sequence[tuple[str, str]]) -> Markup | None:
    """Return buttons that switch curves on and off; None where there is a single one.

    Args:
        title: of the figure.
        entries: (name of a curve, classes of its swatch).
    """
    if len(entries) < 2:
        return None
    return element(
        "div",
        *(
            element(
                "button",
                element("span", class_=f"swatch {classes}", aria_hidden="true"),
                name,
                type="button",
                aria_pressed="true",
                data_series=name,
            )
            for name, classes in entries
        ),
        class_="legend",
        role="group",
        aria_label=f"Curves of {title}",
    )


def figure(
    identifier: str,
    *,
    title: str,
    unit: str,
    caption: str,
    numbers: Table,
    height: int,
    width: str,
    legend: Markup | None,
) -> Markup:
    """Return a figure that a script draws, what it shows in a sentence, and its numbers."""
    return element(
        "figure",
        element("h3", title, " ", element("small", unit)),
        legend,
        element(
            "div",
            id=identifier,
            class_="plot",
            role="img",
            aria_label=f"{title}, {unit}. {caption}",
            style=f"height:{height}px",
        ),
        element("figcaption", caption),
        element(
            "details",
            element("summary", "Numbers", element("span", f" of {title}", class_="unseen")),
            table(numbers, f"Numbers of {title}"),
        ),
        class_=width,
    )
