"""What a task may know of a stage: for those who write tasks, and for the loop that runs them."""

from collections.abc import Mapping
from typing import Any, Protocol


class StageView(Protocol):
    """The two things that a task may know of a stage."""

    @property
    def name(self) -> str: ...

    @property
    def task_options(self) -> Mapping[str, Any]: ...
