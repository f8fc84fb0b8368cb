"""Questions about paragraphs, SQuAD v1.1 and v2."""

from largebatch.bert.squad_metrics import evaluate as evaluate
