"""Answers from a fine-tuned model: to one question, or to all of a file, with the scores where the file has answers."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from largebatch.bert import starting_weights
from largebatch.bert.squad import (
    AnswerOptions,
    Reader,
    WindowSizes,
    entries,
    evaluate,
    questions_of,
    read_dataset,
    write_predictions,
)
from largebatch.errors import InputError

_SHOWN = 3
_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What to answer."""

    question: str | None = None
    """A question."""
    context: str | None = None
    """The text that its answer is in, or with a leading @ the file that holds the text; - reads the input."""
    data: str | None = None
    """Questions in SQuAD's form instead: JSON at a path or URL, or hf:NAME for the split validation of a dataset."""
    out: Path | None = None
    """With them: folder for predictions.json and nbest_predictions.json."""
    may_be_impossible: bool = False
    """Whether a question may have no answer, as in SQuAD v2; a file of v2 says so itself."""
    null_threshold: float = 0.0
    """With that: by how much the score of no answer has to exceed that of the best answer to be given."""
    answer_length: int = 30
    """Most tokens of an answer."""
    sequence_length: int | None = None
    """Most tokens of a window; None takes 384, or what the model allows."""
    stride: int | None = None
    """How many tokens the windows over a long context are apart; None takes 128, or what their length allows."""
    device: str = "cpu"
    """Where to read: cpu or cuda."""


def predict(model: str, options: PredictOptions) -> Iterator[str]:
    """Answer, and yield the lines to be printed.

    Raises:
        InputError: the model, the question or the data cannot be used.
    """
    one = options.question is not None or options.context is not None
    if one == (options.data is not None):
        raise InputError("predict needs --question and --context, or --data: a question, or a file of them")
    if one:
        yield from _one(model, options)
    else:
        yield from _all(model, options)


def _one(model: str, options: PredictOptions) -> Iterator[str]:
    if options.question is None or options.context is None:
        raise InputError("a question needs its context: give both --question and --context")
    if options.out is not None:
        raise InputError("--out is for the questions of --data; one question is answered on the terminal")
    _check_threshold(options, options.may_be_impossible)
    answers = _reader(model, options, options.may_be_impossible).answer(options.question, _text(options.context))
    for answer in answers[:_SHOWN]:
        yield f"{answer.probability:.3f}  {answer.text or '(no answer)'}"


def _all(model: str, options: PredictOptions) -> Iterator[str]:
    assert options.data is not None
    dataset = read_dataset(options.data, "validation")
    questions, problems = questions_of(dataset, answers_needed=False)
    for problem in problems:
        if not problem.kept:
            yield f"question {problem.id} is left out: {problem.what}"
    v2 = options.may_be_impossible or any("is_impossible" in entry for _, _, entry in entries(dataset))
    _check_threshold(options, v2)
    reader = _reader(model, options, v2)
    scored = v2 or any(question.answers for question in questions)
    if scored:
        try:
            evaluate(dataset, {})
        except InputError as error:  # before minutes of reading, not after them
            scored = False
            yield f"there will be no score: {error}"
    else:
        yield f"{options.data} has no answers, so there will be no score"
    if options.out is not None:  # that too
        options.out.mkdir(parents=True, exist_ok=True)
    with _progress(len(questions)) as progress:
        answers = reader.answer_all(questions, progress)
    if options.out is not None:
        for path in write_predictions(options.out, answers):
            yield f"{path}: {len(answers):,} questions"
    if scored:
        found = evaluate(dataset, {name: ranked[0].text for name, ranked in answers.items()})
        yield f"exact match {found['exact_match']:.2f}, F1 {found['f1']:.2f} over all questions of {options.data}"


def _check_threshold(options: PredictOptions, may_be_impossible: bool) -> None:
    if options.null_threshold and not may_be_impossible:
        raise InputError(
            f"null_threshold is {options.null_threshold}, but every question has an answer: add --may-be-impossible"
        )


def _reader(model: str, options: PredictOptions, may_be_impossible: bool) -> Reader:
    longest = starting_weights.sizes(Path(model))["max_position_embeddings"]
    sizes = WindowSizes.for_model(longest, sequence_length=options.sequence_length, stride=options.stride)
    chosen = AnswerOptions(
        answer_length=options.answer_length, may_be_impossible=may_be_impossible, null_threshold=options.null_threshold
    )
    return Reader(model, sizes=sizes, options=chosen, device=options.device)


def _text(context: str) -> str:
    """Return the context itself, that of a file, or that of the input."""
    if context == "-":
        try:
            return sys.stdin.read()
        except UnicodeDecodeError as error:
            raise InputError(f"the input is not UTF-8 text: byte {error.start}") from None
    if not context.startswith("@"):
        return context
    try:
        return Path(context[1:]).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{context[1:]} is not UTF-8 text: byte {error.start}") from None


@contextlib.contextmanager
def _progress(questions: int) -> Iterator[Callable[[int], None]]:
    """Show how many questions are answered: a bar on a terminal, plain lines every few seconds elsewhere."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    began = last_line = time.monotonic()

    def line(done: int) -> None:
        nonlocal last_line
        now = time.monotonic()
        if now - last_line >= _SECONDS_BETWEEN_LINES:
            last_line, rate = now, done / (now - began)
            left = (questions - done) / rate
            console.print(f"{done:,} of {questions:,} questions, {rate:,.1f}/s, {left:,.0f} s left", soft_wrap=True)

    if not console.is_terminal:
        yield line
        return
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("questions", total=questions)
        yield lambda done: bars.update(bar, completed=done)
