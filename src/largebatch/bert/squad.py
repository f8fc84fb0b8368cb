"""Questions about paragraphs, SQuAD v1.1 and v2: reading them, and scoring answers."""

from largebatch.bert.squad_metrics import evaluate as evaluate
from largebatch.bert.squad_questions import Answer as Answer
from largebatch.bert.squad_questions import Problem as Problem
from largebatch.bert.squad_questions import Question as Question
from largebatch.bert.squad_questions import questions_of as questions_of
from largebatch.bert.squad_questions import read_questions as read_questions
