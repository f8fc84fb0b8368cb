"""Optimizers of others, imported so that nothing but their own code is needed.

timm's package imports torchvision, which has no build for the CPU build of PyTorch. Its optimizers need torch alone,
so they are loaded as a package of their own, of which no trace is left among the imported modules.
"""

import importlib
import importlib.util
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _timm(module: str) -> Any:
    spec = importlib.util.find_spec("timm")
    assert spec is not None, "timm comes with the extra `dev` of this project: make test"
    assert spec.origin is not None
    root = Path(spec.origin).parent
    assert "timm" not in sys.modules
    try:
        for name, folder in (("timm", root), ("timm.optim", root / "optim")):
            package = types.ModuleType(name)
            package.__path__ = [str(folder)]
            sys.modules[name] = package
        return importlib.import_module(f"timm.optim.{module}")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
            del sys.modules[name]


def timm_lamb() -> Any:
    """Return timm's Lamb."""
    return _timm("lamb").Lamb


def timm_lars() -> Any:
    """Return timm's Lars."""
    return _timm("lars").Lars


def timm_lion() -> Any:
    """Return timm's Lion: a base from elsewhere for the general strategy."""
    return _timm("lion").Lion


def timm_lookahead() -> Any:
    """Return timm's Lookahead: an optimizer that has another inside."""
    return _timm("lookahead").Lookahead
