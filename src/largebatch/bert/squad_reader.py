"""A fine-tuned BERT that answers questions."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from largebatch.aside import write_aside
from largebatch.bert.squad_answers import AnswerOptions, RankedAnswer
from largebatch.bert.squad_batches import JudgedQuestions, collate_questions
from largebatch.bert.squad_questions import Question, is_text
from largebatch.bert.squad_windows import EncodedQuestions, WindowSizes
from largebatch.bert.tokenizer_files import tokenizer_of
from largebatch.errors import InputError

_QUESTIONS_AT_ONCE = 32


class Reader:
    """A model with a span head, from a Hugging Face folder, that reads a context and answers questions about it.

    Example:
        reader = Reader("runs/squad/model")
        reader.answer("Who wrote?", "Ada wrote to Bea.")[0].text
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        sizes: WindowSizes | None = None,
        options: AnswerOptions | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """Load the model.

        Args:
            folder: with a ``BertForQuestionAnswering`` and its tokenizer.
            sizes: of the windows; by default BERT's, in a model that takes only shorter ones as long as they may be.
            options: how answers are chosen.
            device: where to read, cpu or cuda.

        Raises:
            InputError: there is no such device; the folder holds no BERT with a span head, no tokenizer, or a model too
                short for the sizes.
        """
        from largebatch.bert import span_model, starting_weights

        folder, self._device = Path(folder), _device(device)
        longest = starting_weights.sizes(folder)["max_position_embeddings"]
        self._sizes = sizes or WindowSizes.for_model(longest)
        self._sizes.check_fit(longest, f"the model in {folder}")
        self._options = options or AnswerOptions()
        self._tokenizer = tokenizer_of(folder)
        self._model = span_model.trained_span_model(folder).to(self._device).eval()

    def answer(self, question: str, context: str) -> list[RankedAnswer]:
        """Return the answers to a question, the one that is given first.

        Raises:
            InputError: the question or the context is empty or no text.
        """
        for name, text in (("question", question), ("context", context)):
            if not isinstance(text, str) or not is_text(text):
                raise InputError(f"the {name} is {text!r:.80}, it must be text")
            if not text.strip():
                raise InputError(f"the {name} is empty")
        return self.answer_all([Question("question", question, context, ())])["question"]

    def answer_all(
        self, questions: Sequence[Question], progress: Callable[[int], None] | None = None
    ) -> dict[str, list[RankedAnswer]]:
        """Return the answers to each question, by its id.

        Args:
            questions: what to answer.
            progress: called with the number of questions that have been answered.
        """
        from largebatch.bert.squad_reading import read_answers

        encoded = EncodedQuestions(questions, self._tokenizer, self._sizes)
        judged = JudgedQuestions(encoded)
        found: dict[str, list[RankedAnswer]] = {}
        for first in range(0, len(judged), _QUESTIONS_AT_ONCE):
            samples = [judged[0, index] for index in range(first, min(first + _QUESTIONS_AT_ONCE, len(judged)))]
            batch = {name: tensor.to(self._device) for name, tensor in collate_questions(samples).items()}
            for number, answers in read_answers(self._model, batch, encoded, self._options).questions:
                found[questions[number].id] = answers
            if progress is not None:
                progress(len(found))
        return {question.id: found[question.id] for question in questions}


def write_predictions(folder: Path, answers: Mapping[str, Sequence[RankedAnswer]]) -> list[Path]:
    """Write what the official evaluation takes, ``predictions.json``, and beside it ``nbest_predictions.json``.

    The first maps ids to texts, empty for no answer; the second to lists of text, start, score and probability. Each is
    written aside and renamed.

    Raises:
        OSError: the disk does not take them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = {name: ranked[0].text for name, ranked in answers.items()}
    ranked = {name: [answer._asdict() for answer in ranked] for name, ranked in answers.items()}
    written = []
    for name, content in (("predictions.json", given), ("nbest_predictions.json", ranked)):
        write_aside(folder / name, json.dumps(content, ensure_ascii=False, indent=1))
        written.append(folder / name)
    return written


def _device(given: str | torch.device) -> torch.device:
    try:
        device = torch.device(given)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device is {str(given)!r}, allowed is cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {given}, but there is no GPU that PyTorch can use; allowed here is cpu")
    return device
