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
