"""The browser that tests drive: an installed Chromium."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright


def path_of_chromium() -> str | None:
    """Return the browser that is installed, CHROMIUM's if that is set; None if there is none."""
    given = os.environ.get("CHROMIUM")
    return given or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """Yield a running browser; skip the test where there is none."""
    path = path_of_chromium()
    if path is None:
        pytest.skip("no Chromium at hand")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()
