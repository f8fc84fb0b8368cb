"""The embedded corpus: what is taken from sources, and that no held-out line stands in the training part."""

import re
from pathlib import Path

import pytest
from text_corpora import folder_bytes, run_preparation

from largebatch.text import pydocs
from largebatch.text.options import PrepareOptions
from largebatch.text.prepare import prepare
from largebatch.text.processes import WorkerPool
from largebatch.text.shards import DocumentStore, PreparedCorpus

SOURCE = b'''
"""Of the module."""
raise SystemExit("a source is read, never run")

class Thing:
    """Of a thing.

       An example:
           <Thing object at 0x7f3a12345678>
           --------
    """
    def method(self):
        """Of a method."""
        text = """a string, no docstring"""
        def inner():
            """Of an inner function."""
    async def other(self):
        "Of a coroutine."

if True:
    def conditional():
        """Of a function under a condition."""
try:
    pass
except ValueError:
    def handler():
        """Of a function in a handler."""

add_docstr(Thing.method, r"""
    added(input) -> Tensor

    Added text.

    Args:
        {input}
        {{braces}}
""".format(**common))
name = _add_docstr(one, """
    Assigned text.
""")
add_newdoc("numpy", "ndarray", ("T", """
    View of the transposed array.
    """))
other_call("""
    not a docstring
""")
'''
FOUND = [
    "Of the module.",
    "Of a thing.\n\nAn example:\n    <Thing object at 0x7f3a12345678>\n    --------",
    "Of a method.",
    "Of an inner function.",
    "Of a coroutine.",
    "Of a function under a condition.",
    "Of a function in a handler.",
    "added(input) -> Tensor\n\nAdded text.\n\nArgs:\n    {braces}",
    "Assigned text.",
    "View of the transposed array.",
]


def test_docstrings_are_found_in_the_order_of_the_source() -> None:
    assert pydocs.docstrings(SOURCE) == FOUND


@pytest.mark.parametrize("source", [b"", b"x = 1", b'"""torn', b'def f(:\n """x"""', b'"""nul \0"""'])
def test_a_source_without_docstrings_gives_none(source: bytes) -> None:
    assert pydocs.docstrings(source) == []


def test_documents_have_no_addresses_and_no_lines_without_letters(tmp_path: Path) -> None:
    (tmp_path / "thing.py").write_bytes(SOURCE)
    (tmp_path / "plain.py").write_bytes(b"x = 1")
    (document,) = pydocs.source_documents([str(tmp_path / "thing.py"), str(tmp_path / "plain.py")])
    assert document[:4] == ["Of the module.", "Of a thing.", "An example:", "Of a method."]
    assert "{braces}" in document


def test_a_long_module_is_cut_between_docstrings(tmp_path: Path) -> None:
    lines = "\n    ".join(f"line {number}" for number in range(30))
    (tmp_path / "long.py").write_text("".join(f'def f{n}():\n    """{lines}"""\n' for n in range(5)))
    assert [len(document) for document in pydocs.source_documents([str(tmp_path / "long.py")])] == [60, 60, 30]


def test_compiled_modules_give_theirs() -> None:
    (document, *_) = pydocs.compiled_documents("math")
    assert "Return the arc cosine (measured in radians) of x." in document
    numpy = {line for document in pydocs.compiled_documents("numpy") for line in document}
    assert "Add arguments element-wise." in numpy  # a ufunc, whose docstring stands in no source
    assert pydocs.compiled_documents("no_such_module") == []


def test_topics_and_sources_of_all_three_are_there() -> None:
    assert len(pydocs.topics()) > 50
    files = pydocs.source_files()
    assert len(files) == len(set(files))
    for part in ("/json/decoder.py", "/numpy/_core/_add_newdocs.py", "/torch/_torch_docs.py"):
        assert any(file.endswith(part) for file in files)
    assert not any("/tests/" in file or "/test/" in file for file in files)


def sentences(store: DocumentStore) -> list[bytes]:
    """Return every sentence as its tokens."""
    return [sentence.tobytes() for number in range(store.documents) for sentence in store.document(number)]


def shared_lines(corpus: PreparedCorpus) -> set[bytes]:
    """Return the held-out sentences that also stand in the training part."""
    return set(sentences(corpus.held_out)) & set(sentences(corpus.train))


def some_pydocs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take 60 source files and two compiled modules only."""
    wanted = [
        file for file in pydocs.source_files() if re.search(r"/(json|email|importlib|numpy/fft|torch/optim)/", file)
    ]
    monkeypatch.setattr(pydocs, "source_files", lambda: wanted[:60])
    monkeypatch.setattr(pydocs, "_COMPILED", "math itertools")


@pytest.mark.parametrize("deduplicate", ["auto", False])
def test_no_held_out_line_stands_in_the_training_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deduplicate: bool
) -> None:
    some_pydocs(monkeypatch)
    options = PrepareOptions(vocabulary_size=2000, held_out_fraction=0.2, deduplicate_lines=deduplicate, workers=1)
    corpus = prepare(options, tmp_path / "out")
    assert corpus.held_out.documents > 10
    if deduplicate == "auto":
        assert shared_lines(corpus) == set()
        everything = sentences(corpus.train) + sentences(corpus.held_out)
        assert len(set(everything)) == len(everything)
    else:  # without it there are many: the test can fail
        assert len(shared_lines(corpus)) > 20


@pytest.mark.slow
def test_all_of_pydocs(tmp_path: Path) -> None:
    for number in (1, 2):
        status, output, errors = run_preparation({"workers": number}, tmp_path / f"out{number}", hash_seed=number)
        assert status == 0, output + errors
    one, two = folder_bytes(tmp_path / "out1"), folder_bytes(tmp_path / "out2")
    assert one == two
    corpus = PreparedCorpus.open(tmp_path / "out1")
    corpus.verify()
    assert corpus.vocabulary_size == 8192
    assert 0.01 < corpus.held_out.documents / (corpus.train.documents + corpus.held_out.documents) < 0.03
    assert corpus.train.tokens > 1_500_000
    assert shared_lines(corpus) == set()
    assert corpus.token_counts()[corpus.special_ids.unk] < corpus.train.tokens / 1000
    with WorkerPool(1) as pool:
        text = "\n".join(line for document in pydocs.collect(pool) for line in document)
    assert 8e6 < len(text.encode()) < 14e6
    assert not re.search(r"0x7f[0-9a-f]{4}", text)
    assert str(tmp_path) not in text
    assert str(Path(__file__).parents[2]) not in text
