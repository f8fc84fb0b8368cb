"""What the fields of a record may be, checked where it is made, by a user's code or from a file."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from largebatch.errors import InputError

NUMBER, WHOLE, TEXT, TRUTH = "a finite number", "a whole number", "text", "true or false"
"""Kinds; any other kind is a type, or a `Literal` of texts."""

_TYPES: Mapping[str, type] = {WHOLE: int, TEXT: str, TRUTH: bool}


def check_kinds(record: object, what: str, **kinds: Any) -> None:
    """Raise InputError unless each field is of its kind.

    Args:
        record: whose fields they are.
        what: it is called in the message.
        kinds: field -> kind, or (kind, None) where it may be None.
    """
    for name, kind in kinds.items():
        value = getattr(record, name)
        wanted, absent = kind if isinstance(kind, tuple) else (kind, False)
        if not is_kind(value, wanted) and not (absent is None and value is None):
            said = _said(wanted) + (" or none" if absent is None else "")
            raise InputError(f"{what} has {name.replace('_', ' ')} {value!r}, allowed is {said}")


def is_kind(value: object, kind: Any) -> bool:
    """Return whether a value is of a kind; true and false are no numbers."""
    if not isinstance(kind, str):
        return value in get_args(kind) if get_args(kind) else isinstance(value, kind)
    if isinstance(value, bool) and kind != TRUTH:
        return False
    if kind == NUMBER:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, _TYPES[kind])


def _said(kind: Any) -> str:
    if isinstance(kind, str):
        return kind
    return " or ".join(map(repr, get_args(kind))) or f"a {kind.__name__.lower()}"
