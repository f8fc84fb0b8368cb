"""Fixtures for the tests of BERT."""

from pathlib import Path

import pytest
from bert_corpora import write_corpus


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    """A prepared corpus of 150 training and 30 held-out documents."""
    return write_corpus(tmp_path / "corpus")
