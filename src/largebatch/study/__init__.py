"""Comparisons that are fair: searches with equal budgets, and what their seeds can support."""

from importlib.util import find_spec

from largebatch.errors import InputError

if find_spec("scipy") is None:
    raise InputError("statistics need the package scipy, which is not installed: pip install 'largebatch[study]'")
