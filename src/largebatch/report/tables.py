"""Numbers as a table of the page."""

import re

from largebatch.report.charts import Table
from largebatch.report.markup import Markup, element

_NUMERIC = re.compile(r"[−-]?[\d,.]+(e[+-]\d+)?( %)?|–")


def table(numbers: Table, label: str) -> Markup:
    """Return a table that can be scrolled; columns of numbers are aligned to the right."""
    numeric = [all(_NUMERIC.fullmatch(cell) for cell in column) for column in zip(*numbers.rows, strict=True)]
    kinds = ["number" if is_numeric else None for is_numeric in numeric]
    titles = zip(numbers.header, kinds or [None] * len(numbers.header), strict=True)
    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", *(element("th", text, scope="col", class_=kind) for text, kind in titles))),
            element("tbody", *(_row(row, kinds) for row in numbers.rows)),
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=label,
    )


def _row(row: tuple[str, ...], kinds: list[str | None]) -> Markup:
    first, *others = zip(row, kinds, strict=True)
    return element(
        "tr",
        element("th", first[0], scope="row", class_=first[1]),
        *(element("td", text, class_=kind) for text, kind in others),
    )
