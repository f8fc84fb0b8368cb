"""Windows of questions as data sets, for training and for judging, and as batches of tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from largebatch.bert.squad_windows import EncodedQuestions, Window


class TrainingWindows:
    """A map-style data set of windows, asked by (epoch, index): all windows of all questions, in their order."""

    def __init__(self, encoded: EncodedQuestions) -> None:
        self._encoded = encoded
        counts = [encoded.window_count(number) for number in range(len(encoded.questions))]
        self._before = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getitem__(self, sample: tuple[int, int]) -> Window:
        """Return the window of one (epoch, index); it is the same in every epoch."""
        return self._encoded.window(*self._place(sample[1]))

    def lengths(self, samples: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
        """Return the tokens of the windows of some (epoch, index)."""
        return np.array([self._encoded.length(*self._place(index)) for _, index in samples], np.int64)

    def _place(self, index: int) -> tuple[int, int]:
        """Return (question, which of its windows)."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self._before, index, side="right")) - 1
        return number, index - int(self._before[number])


class QuestionWindows(NamedTuple):
    """All windows of a question."""

    number: int
    """Which question it is."""
    windows: list[Window]


class JudgedQuestions:
    """A map-style data set of questions with all their windows, those of a length beside each other."""

    def __init__(self, encoded: EncodedQuestions) -> None:
        self._encoded = encoded
        self._order = sorted(range(len(encoded.questions)), key=encoded.length)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, sample: tuple[int, int]) -> QuestionWindows:
        """Return the question of one (epoch, index)."""
        number = self._order[sample[1]]
        return QuestionWindows(number, self._encoded.windows(number))


def collate_windows(windows: Sequence[Window]) -> dict[str, Tensor]:
    """Return the tensors of W windows, padded to the longest.

    Returns:
        ``input_ids`` int64 [W, L], 0 at padding; ``token_type_ids`` int64 [W, L], 1 for the context and its [SEP];
        ``attention_mask`` bool [W, L]; ``start`` and ``end``, int64 [W], of the answers.
    """
    lengths = np.array([len(window.tokens) for window in windows])
    places = np.arange(lengths.max())
    inside = places < lengths[:, None]
    ids = np.zeros(inside.shape, np.int64)
    ids[inside] = np.concatenate([window.tokens for window in windows])
    context_at = np.array([window.context_at for window in windows])[:, None]
    arrays = {
        "input_ids": ids,
        "token_type_ids": (inside & (places >= context_at)).astype(np.int64),
        "attention_mask": inside,
        "start": np.array([window.start for window in windows], np.int64),
        "end": np.array([window.end for window in windows], np.int64),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def collate_questions(questions: Sequence[QuestionWindows]) -> dict[str, Tensor]:
    """Return the tensors of all windows of some questions, and ``question``, int64 [questions], which they are."""
    batch = collate_windows([window for question in questions for window in question.windows])
    return {**batch, "question": torch.tensor([question.number for question in questions])}
