"""Words of a command line: typed options from dataclasses by tyro, its boxed errors rewritten to one line."""

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from largebatch.errors import InputError

T = TypeVar("T")

_UNFIT = re.compile(
    r"^Error parsing (--[\w-]+): (?:no type matching .* could be instantiated from \[|invalid literal for int.*: "
    r"|could not convert string to float: )'(.*?)'.*"
)
"""What tyro says of a word that no type of an option takes, with all that was tried."""


def _style() -> tuple[Any, ...]:
    import tyro

    return (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


def parse(
    wanted: type[T] | Callable[..., T], arguments: Sequence[str], verb: str, *, description: str, default: Any = None
) -> T:
    """Read all arguments as the fields of a dataclass.

    Raises:
        InputError: in one sentence, for an unknown field, a missing or an ill-typed value.
        SystemExit: with 0 after printing the help that was asked for.
    """
    import tyro

    with _one_line_errors(verb):
        return tyro.cli(
            wanted,
            prog=f"largebatch {verb}",
            args=list(arguments),
            description=description,
            config=_style(),
            **({} if default is None else {"default": default}),
        )


def parse_known(wanted: type[T] | Callable[..., T], arguments: Sequence[str], verb: str) -> tuple[T, list[str]]:
    """Read the arguments that belong to ``wanted`` and return the rest; a request for help is part of the rest."""
    import tyro

    with _one_line_errors(verb):
        return tyro.cli(
            wanted,
            prog=f"largebatch {verb}",
            args=list(arguments),
            return_unknown_args=True,
            add_help=False,
            config=_style(),
        )


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ", did you mean ...?" where a known word is near, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""


def check_given_once(arguments: Sequence[str]) -> None:
    """Raise InputError if an option is given twice, of which only the last would count."""
    names = [word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is given {names.count(twice)} times, allowed is once")


class _one_line_errors(contextlib.AbstractContextManager[None]):
    """Catches tyro's exit with 2 and raises its message as one sentence; what else was said meanwhile is passed on."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._caught = io.StringIO()
        self._redirect = contextlib.redirect_stderr(self._caught)

    def __enter__(self) -> None:
        self._redirect.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._redirect.__exit__(kind, error, trace)
        if isinstance(error, SystemExit) and error.code == 2:
            raise InputError(
                f"{one_line(self._caught.getvalue())} (largebatch {self._verb} --help lists what is allowed)"
            ) from error
        sys.stderr.write(self._caught.getvalue())  # a recipe is called within, which may warn of its data


def one_line(boxed: str) -> str:
    """Return the message of a boxed error without the box, with what tyro suggests or allows if it says so.

    The box is drawn in lines where the terminal has them; elsewhere its title stands above a row of dashes.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    sections: list[list[str]] = [[]]
    for line in plain.splitlines():
        inner = line.strip("│ ")
        if re.fullmatch(r"[─-]{5,}", inner):
            sections.append([])
        elif inner and inner[0] not in "╭╰":
            sections[-1].append(inner)
    if "│" not in plain and len(sections) > 1:
        del sections[0]
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(sections[0]))
    message = _UNFIT.sub(r"\1 is '\2'", message)
    for section in sections[1:]:
        if section and section[0].startswith("Perhaps you meant") and len(section) > 1:
            message += f", perhaps you meant {section[1]}"
        if section and section[0].startswith("Argument helptext") and len(section) > 1:
            message += f", allowed is {section[1]}"
    return message
