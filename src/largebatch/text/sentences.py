"""Text to sentences: one a line, or running text split by rule.

The rule is for languages that end a sentence with a mark and begin the next with something that is not a
small letter. A full stop after a known abbreviation, an initial or a letter-by-letter abbreviation (U.S.)
ends nothing. It is a rule, not a model: next-sentence prediction needs cuts in plausible places, not all of
them. Text that has one sentence a line keeps its own cuts.
"""

import re
from collections.abc import Iterator
from typing import Literal

SentenceMode = Literal["line", "split", "paragraph"]
"""One sentence a line; each line split into sentences; lines joined up to a blank one, then split."""

# A run of marks is tried from its first one only and never given back: a page of dots must not cost its square.
_END = re.compile(r"""(?<![.!?…])([.!?…]++["'”’»)\]]*+)\s++|([。！？]++[」』”’）]*+)\s*+""")
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘«]+$")
_LONGEST_ABBREVIATION = 16
_LETTERS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # J, U.S, e.g
_OPENING = "\"'“‘«(["
_KNOWN = """
    adm al approx apr assn assoc aug ave bros ca capt cf cmdr co col comdr corp dec dept dr ed eds eq eqs est etc feb
    fig figs ft gen gov hon inc jan jr jul jun lt ltd maj mar messrs mr mrs ms mt nov oct op p pp prof pvt rep rev sec
    sect sen sep sept ser sgt sr st vol vols vs viz
"""
_ABBREVIATIONS = frozenset(_KNOWN.split())
_BEFORE_NUMBERS = frozenset(("no", "nos"))  # words of their own where no number follows


def sentences(text: str, mode: SentenceMode) -> list[str]:
    """Return the sentences of one document, stripped, none of them empty.

    Lines end at LF, CR LF or CR; other characters that Unicode calls a line break stay inside a line.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = [line.strip() for line in text.split("\n")]
    if mode == "line":
        return [line for line in lines if line]
    pieces = lines if mode == "split" else _paragraphs(lines)
    return [sentence for piece in pieces for sentence in split_sentences(piece)]


def split_sentences(text: str) -> list[str]:
    """Split running text into sentences by the rule above."""
    found, start = [], 0
    for match in _END.finditer(text):
        if match.end() < len(text) and _ends(text, start, match):
            found.append(text[start : match.end()].strip())
            start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    if match.group(2):  # CJK marks need no space and know no abbreviations
        return True
    following = text[match.end() : match.end() + 4].lstrip(_OPENING)[:1]
    if following.islower():
        return False
    if match.group(1)[0] != ".":
        return True
    word = _LAST_WORD.search(text, max(start, match.start() - _LONGEST_ABBREVIATION), match.start())
    if word is None or match.group(1).startswith(".."):
        return True
    small = word.group().lower()
    if small in _ABBREVIATIONS or (small in _BEFORE_NUMBERS and following.isdigit()):
        return False
    return not _LETTERS.fullmatch(small)


def _paragraphs(lines: list[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line:
            paragraph.append(line)
        elif paragraph:
            yield " ".join(paragraph)
            paragraph = []
