"""HTML in which everything is escaped unless it was built here."""

import html
import json
from typing import Any


class Markup(str):
    """Text that is HTML already; only ``element``, ``join`` and ``script_data`` make it."""

    __slots__ = ()


Child = str | None

_VOID = {"meta", "br", "hr", "input", "col"}


def element(tag: str, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """Build one element; children that are plain text are escaped, None is left out.

    Attributes: a trailing underscore goes (``class_``), other underscores become hyphens (``aria_label``); True
    stands as a bare name, False and None are left out.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        assert not children
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{join(*children)}</{tag}>")


def _attribute(name: str, value: str | int | float | bool | None) -> str:
    name = name.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


def join(*children: Child) -> Markup:
    """Put pieces side by side, plain text escaped."""
    return Markup(
        "".join(child if isinstance(child, Markup) else html.escape(child) for child in children if child is not None)
    )


def script_data(identifier: str, value: Any) -> Markup:
    """Embed JSON for a script to read; no text in it can end the element or begin another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: no line separators either
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{html.escape(identifier)}">{text}</script>')


def asset(tag: str, text: str) -> Markup:
    """Wrap a style sheet or a script of ours (or of Plotly), which must not contain its own end tag."""
    if f"</{tag}" in text.lower():
        raise ValueError(f"a {tag} to be embedded contains </{tag}")
    return Markup(f"<{tag}>{text}</{tag}>")


def plot_text(text: str) -> str:
    """Escape text for Plotly, which reads markup in labels."""
    return html.escape(text, quote=False)
