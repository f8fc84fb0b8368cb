"""A recipe whose second rank works in another folder, as on a node that shares none."""

import os
import tempfile

from largebatch.recipes.optimizers import Lamb
from largebatch.train.run import Run
from train.toy import ToyTask, toy


def elsewhere() -> Run[ToyTask, Lamb]:
    """Return the run of the tests."""
    if os.environ.get("RANK") == "1":
        os.chdir(tempfile.gettempdir())
    return toy()
