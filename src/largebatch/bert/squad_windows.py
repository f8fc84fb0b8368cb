"""Windows of tokens over a question and its context, and where the answer lies in them.

    [CLS] question [SEP] part of the context [SEP]

A context longer than the room that a window has for it is covered by several, whose parts begin `stride` tokens after
each other. A window in which the answer does not lie whole has [CLS], position 0, as start and end. A token that is
seen in several windows is judged in that which shows most around it.

Source: Devlin et al., NAACL 2019, section 4.2, and the features of its scripts for SQuAD.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from largebatch.bert.squad_questions import Answer, Question
from largebatch.errors import InputError, check_at_least

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Integers = NDArray[np.int32]

_SPECIAL_TOKENS = 3
_ENCODED_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class WindowSizes:
    """Lengths in tokens."""

    sequence_length: int = 384
    """Most tokens of a window, special ones included."""
    stride: int = 128
    """How far the parts of two windows in a row are apart."""
    question_length: int = 64
    """A longer question loses its end."""

    def __post_init__(self) -> None:
        check_at_least(self, stride=1, question_length=1)
        if self.sequence_length <= self.question_length + _SPECIAL_TOKENS:
            raise InputError(
                f"sequence_length is {self.sequence_length}: with question_length {self.question_length} it must be "
                f"{self.question_length + _SPECIAL_TOKENS + 1} or more, to leave room for the context"
            )
        if self.stride > self.sequence_length - self.question_length - _SPECIAL_TOKENS:
            raise InputError(
                f"stride is {self.stride}: windows of {self.sequence_length} tokens beside questions of up to "
                f"{self.question_length} would leave out parts of the context; allowed is up to "
                f"{self.sequence_length - self.question_length - _SPECIAL_TOKENS}"
            )

    @classmethod
    def for_model(
        cls,
        longest: int,
        *,
        sequence_length: int | None = None,
        stride: int | None = None,
        question_length: int | None = None,
    ) -> "WindowSizes":
        """Return sizes for a model that takes ``longest`` tokens; whether what is given fits it is not checked.

        Unless given, windows are as long as BERT's, or as the model takes, a question takes up to a quarter of one, and
        two windows in a row share half of what is left.
        """
        length = min(longest, cls.sequence_length) if sequence_length is None else sequence_length
        room = length - _SPECIAL_TOKENS
        if question_length is None:
            question_length = min(cls.question_length, max(1, room // 4))
        if stride is None:
            stride = min(cls.stride, max(1, (room - question_length) // 2))
        return cls(sequence_length=length, question_length=question_length, stride=stride)

    def check_fit(self, longest: int, model: str) -> None:
        """Raise InputError if a window has more tokens than a model takes."""
        if self.sequence_length > longest:
            raise InputError(f"sequence_length is {self.sequence_length}, {model} allows {longest}")


class Window(NamedTuple):
    """One window."""

    tokens: Integers
    """[length], [CLS] first, [SEP] last."""
    context_at: int
    """The position of the first token of the context."""
    context_first: int
    """Which of the context's tokens that is."""
    start: int
    """The position of the answer's first token; 0 where the answer is not here."""
    end: int
    """The position of its last token."""

    @property
    def context_length(self) -> int:
        """Tokens of the context in this window."""
        return len(self.tokens) - self.context_at - 1


class EncodedContext(NamedTuple):
    """A context in tokens."""

    tokens: Integers
    """[length]."""
    characters: Integers
    """The first character of each token, and that after its last, [length, 2]."""


class EncodedQuestions:
    """Questions and their contexts in tokens. Picklable, for worker processes."""

    def __init__(self, questions: Sequence[Question], tokenizer: "Tokenizer", sizes: WindowSizes) -> None:
        """Encode them; each context once, however many questions it has.

        Raises:
            InputError: the tokenizer has no [CLS] or [SEP].
        """
        self.questions, self.sizes = questions, sizes
        self._cls, self._sep = (_special(tokenizer, token) for token in ("[CLS]", "[SEP]"))
        texts: dict[str, int] = {}
        self._context_of = [texts.setdefault(question.context, len(texts)) for question in questions]
        self._contexts = [
            EncodedContext(np.array(ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2))
            for ids, offsets in _encode(tokenizer, list(texts))
        ]
        self._asked = [
            np.array(ids[: sizes.question_length], np.int32)
            for ids, _ in _encode(tokenizer, [question.text for question in questions])
        ]

    def context(self, number: int) -> EncodedContext:
        """Return the context of a question."""
        return self._contexts[self._context_of[number]]

    def window_count(self, number: int) -> int:
        """Return how many windows a question has."""
        beyond = len(self.context(number).tokens) - self._room(number)
        return 1 + max(0, -(-beyond // self.sizes.stride))

    def length(self, number: int, place: int = 0) -> int:
        """Return the tokens of one of a question's windows; the first is the longest."""
        rest = len(self.context(number).tokens) - place * self.sizes.stride
        return len(self._asked[number]) + _SPECIAL_TOKENS + min(rest, self._room(number))

    def window(self, number: int, place: int) -> Window:
        """Return one of a question's windows, counted from 0; its labels are of the first annotated answer."""
        asked, context = self._asked[number], self.context(number)
        first = place * self.sizes.stride
        part = context.tokens[first : first + self._room(number)]
        tokens = np.concatenate([[self._cls], asked, [self._sep], part, [self._sep]]).astype(np.int32)
        at = len(asked) + 2
        answers = self.questions[number].answers
        span = token_span(context, answers[0]) if answers else None
        if span is None or span[0] < first or span[1] >= first + len(part):
            return Window(tokens, at, first, 0, 0)
        return Window(tokens, at, first, span[0] - first + at, span[1] - first + at)

    def windows(self, number: int) -> list[Window]:
        """Return all windows of a question, in order."""
        return [self.window(number, place) for place in range(self.window_count(number))]

    def _room(self, number: int) -> int:
        """Return how many tokens of the context a window holds."""
        return self.sizes.sequence_length - len(self._asked[number]) - _SPECIAL_TOKENS


def token_span(context: EncodedContext, answer: Answer) -> tuple[int, int] | None:
    """Return the first and the last token that an answer has characters of; None where no token has any."""
    touched = np.flatnonzero(
        (context.characters[:, 1] > answer.start) & (context.characters[:, 0] < answer.start + len(answer.text))
    )
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


def judged_here(windows: Sequence[Window]) -> list[NDArray[np.bool_]]:
    """Return, for each of a question's windows, which of its context's tokens are judged in it, bool [context_length].

    It is the window that shows most on the token's poorer side, among equals the longest, then the first.
    """
    reach = max((window.context_first + window.context_length for window in windows), default=0)
    best = np.full(reach, -1, np.int64)
    merits = []
    for place, window in enumerate(windows):
        length = window.context_length
        at = np.arange(length, dtype=np.int64)
        merit = ((np.minimum(at, length - 1 - at) * (1 << 20) + length) << 20) - place
        np.maximum(best[window.context_first :][:length], merit, out=best[window.context_first :][:length])
        merits.append(merit)
    return [merit == best[window.context_first :][: len(merit)] for window, merit in zip(windows, merits, strict=True)]


def _encode(tokenizer: "Tokenizer", texts: list[str]) -> Any:
    """Yield (ids, offsets) of each text, without special tokens; not all texts are held in tokens at once."""
    for first in range(0, len(texts), _ENCODED_AT_ONCE):
        for found in tokenizer.encode_batch(texts[first : first + _ENCODED_AT_ONCE], add_special_tokens=False):
            yield found.ids, found.offsets


def _special(tokenizer: "Tokenizer", token: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise InputError(f"the tokenizer has no {token}, which BERT's windows need")
    return number
