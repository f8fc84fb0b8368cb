"""Shared studies that are closed at the end of each test."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from made_study import Share

from largebatch.study.claims import SharedStudy


@pytest.fixture
def share() -> Iterator[Share]:
    """Open a study in a database; takes what `SharedStudy` takes."""
    with ExitStack() as opened:
        yield lambda *given, **more: opened.enter_context(SharedStudy(*given, **more))
