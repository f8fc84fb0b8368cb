"""What all tests share: that nothing stays behind."""

import os
import shutil
import tempfile

import pytest

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def pytest_configure(config: pytest.Config) -> None:
    """Give PyTorch's compiler, which makes its folder when imported, one that goes with the session.

    Processes of the session, pytest's own among them, inherit it.
    """
    if CACHE not in os.environ:
        os.environ[CACHE] = folder = tempfile.mkdtemp(prefix="largebatch-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """See that tests which share what is dear to set up stay in one process."""
    if hasattr(config, "workerinput"):  # a process of pytest-xdist, which marks groups in the names of tests
        for item in items:
            if item.get_closest_marker("xdist_group") and "@" not in item.nodeid:
                raise pytest.UsageError("the installed pytest and pytest-xdist do not keep groups of tests together")
