"""Questions about paragraphs, SQuAD v1.1 and v2: reading them, answering them, and scoring answers."""

from largebatch.bert.squad_answers import AnswerOptions as AnswerOptions
from largebatch.bert.squad_answers import RankedAnswer as RankedAnswer
from largebatch.bert.squad_metrics import evaluate as evaluate
from largebatch.bert.squad_questions import Answer as Answer
from largebatch.bert.squad_questions import Problem as Problem
from largebatch.bert.squad_questions import Question as Question
from largebatch.bert.squad_questions import questions_of as questions_of
from largebatch.bert.squad_questions import read_questions as read_questions
from largebatch.bert.squad_questions import spread as spread
from largebatch.bert.squad_reader import Reader as Reader
from largebatch.bert.squad_reader import write_predictions as write_predictions
from largebatch.bert.squad_source import entries as entries
from largebatch.bert.squad_source import read_dataset as read_dataset
from largebatch.bert.squad_windows import WindowSizes as WindowSizes
