"""The embedded corpus: what the installed Python, NumPy and PyTorch say about themselves.

Three kinds of text, in this order: the topics of `pydoc` (the language reference), the docstrings of compiled
modules, and the docstrings in Python sources. Sources are parsed, never run; only compiled modules of the
standard library and NumPy are imported, in worker processes. What is found depends on the installed versions
alone: files are taken in the order of their names, and a line that shows a memory address is dropped.
"""

import ast
import gc
import importlib
import importlib.util
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from largebatch.text.processes import WorkerPool

_PACKAGES = ("numpy", "torch")
_NOT_PROSE = frozenset(
    ("test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "__pycache__")
)
_COMPILED = """
    _abc _ast _asyncio _bisect _bz2 _codecs _collections _contextvars _csv _ctypes _curses _datetime _decimal
    _elementtree _functools _hashlib _heapq _io _json _locale _lsprof _lzma _operator _pickle _queue _random
    _signal _socket _sqlite3 _sre _ssl _stat _string _struct _symtable _thread _tracemalloc _uuid _warnings
    _weakref _zoneinfo array atexit binascii builtins cmath errno faulthandler fcntl gc grp itertools marshal
    math mmap posix pwd pyexpat resource select sys syslog termios time unicodedata zlib numpy numpy.random
"""
# Functions that give a compiled object its docstring, which stands in the source as an argument.
_ADDERS = ("add_docstr", "add_newdoc")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
_LETTER = re.compile(r"[^\W\d_]")
_PLACEHOLDER = re.compile(r"\{\w+\}")
_DOCUMENT_LINES = 40
_FILES_PER_TASK = 32

Document = list[str]


def collect(pool: WorkerPool) -> Iterator[Document]:
    """Yield all documents; a document is the docstrings of one module, cut between two of them at 40 lines."""
    yield from topics()
    for _, found in pool.map(compiled_documents, ((None, (name,)) for name in _COMPILED.split())):
        yield from found or ()
    for _, found in pool.map(source_documents, ((None, (paths,)) for paths in _batches(source_files()))):
        yield from found or ()


def topics() -> list[Document]:
    """Return the topics of `pydoc`, a document each; none where the installation came without them."""
    try:
        from pydoc_data.topics import topics as found
    except ImportError:
        return []
    return _documents([text] for _, text in sorted(found.items()))


def compiled_documents(module: str) -> list[Document]:
    """Return the docstrings of a module's compiled functions and classes; none if it is not there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = vars(importlib.import_module(module))
            return _documents([_compiled_docstrings(names)])
    except ImportError:
        return []


def source_files() -> list[str]:
    """Return the Python sources of the standard library, NumPy and PyTorch, in the order of their names."""
    roots = [Path(sysconfig.get_paths()["stdlib"])]
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)  # looks it up and does not import it
        if spec is not None and spec.origin is not None:
            roots.append(Path(spec.origin).parent)
    return [str(path) for root in roots for path in _sources(root)]


def source_documents(paths: list[str]) -> list[Document]:
    """Return the documents of some source files."""
    gc.disable()  # trees have no cycles, and looking for some doubles the time
    try:
        return _documents(docstrings(Path(path).read_bytes()) for path in paths)
    finally:
        gc.enable()


def docstrings(source: bytes) -> list[str]:
    """Return the docstrings of a module in the order of its source; none if it cannot be parsed."""
    if b'"""' not in source and b"'''" not in source:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    return [inspect.cleandoc(text) for text in _strings(tree)]


def _sources(root: Path) -> Iterator[Path]:
    found = sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py"))
    yield from (path for name, path in found if _NOT_PROSE.isdisjoint(name.split("/")))


def _strings(node: ast.AST) -> Iterator[str]:
    """Walk statements only: expressions are most of a tree, and hold docstrings in calls of the adders alone."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield text
    if isinstance(node, ast.Expr | ast.Assign) and isinstance(node.value, ast.Call):
        yield from _added(node.value)
    for field in ("body", "handlers", "orelse", "finalbody"):
        for child in getattr(node, field, None) or ():
            yield from _strings(child)


def _added(call: ast.Call) -> Iterator[str]:
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", "")
    if not name.endswith(_ADDERS):
        return
    for node in ast.walk(call):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            lines = inspect.cleandoc(node.value).split("\n")  # often a template, whose fields are filled at import
            kept = (line for line in lines if not _PLACEHOLDER.fullmatch(line.strip()))
            yield "\n".join(kept).replace("{{", "{").replace("}}", "}")


def _compiled_docstrings(names: dict[str, object]) -> list[str]:
    found = []
    for name in sorted(names):
        thing = names[name]
        if isinstance(thing, type) and not _is_python(thing):
            members = vars(thing)
            # inspect.getdoc would go on to base classes, whose text then stands there many times
            found += [thing.__doc__, *(getattr(members[key], "__doc__", None) for key in sorted(members))]
        elif callable(thing) and not isinstance(thing, type) and not hasattr(thing, "__code__"):
            found.append(getattr(thing, "__doc__", None))
    return [inspect.cleandoc(text) for text in found if isinstance(text, str)]


def _is_python(thing: type) -> bool:
    """Whether a class has methods in Python: its docstrings are then found in the source."""
    return any(hasattr(member, "__code__") for member in vars(thing).values())


def _documents(modules: Iterable[Iterable[str]]) -> list[Document]:
    documents: list[Document] = []
    for texts in modules:
        document: Document = []
        for text in texts:
            document += _lines(text)
            if len(document) >= _DOCUMENT_LINES:
                documents.append(document)
                document = []
        if document:
            documents.append(document)
    return documents


def _lines(text: str) -> list[str]:
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if _LETTER.search(line) and not _ADDRESS.search(line)]


def _batches(paths: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(paths), _FILES_PER_TASK):
        yield paths[start : start + _FILES_PER_TASK]
