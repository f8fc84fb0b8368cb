"""A bar chart as an SVG file: one bar for each name, its number at its end."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

ROW, LEFT, WIDE, RIGHT = 24, 220, 560, 70


def write_bar_chart(path: Path, title: str, bars: Sequence[tuple[str, float, bool]], unit: str) -> None:
    """Write the chart.

    Args:
        path: of the SVG file.
        title: above the bars.
        bars: name, number and whether it is ours.
        unit: of the numbers.
    """
    most = max(number for _, number, _ in bars)
    height = 40 + ROW * len(bars) + 10
    width = LEFT + WIDE + RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="10" y="22" font-weight="bold">{escape(title)}</text>',
    ]
    for row, (name, number, ours) in enumerate(bars):
        y, length = 40 + ROW * row, max(1.0, WIDE * number / most)
        colour = "#0072b2" if ours else "#999999"
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y + 3}" width="{length:.1f}" height="{ROW - 8}" fill="{colour}"/>',
            f'<text x="{LEFT + length + 6:.1f}" y="{y + 15}">{number:.3g} {escape(unit)}</text>',
        ]
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")
