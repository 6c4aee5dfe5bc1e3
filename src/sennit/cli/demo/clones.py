"""The same code in two places, found by hashing every window of six code lines.

    file ─► code lines (no comments, docstrings, imports, thin lines) ─► window hashes ─► equal hashes are seeds
         ─► each seed grows along both files as far as they agree ─► blocks with the same text become one Duplicate

Equal means equal token by token: blanks, comments and blank lines do not count, names and literals do (a "type 1"
clone; source: Roy, Cordy and Koschke, "Comparison and evaluation of code clone detection", 2009, section 2).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from sennit.cli.demo.records import Duplicate, Fingerprint, Place

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sennit.cli.demo.records import FileReport
    from sennit.cli.demo.source import Scan

WINDOW_LINES: Final = 6
# `)`, `else:`, `return` or `pass` are alike everywhere and say nothing.
_WORDS_MIN: Final = 2
_DIGEST_BYTES: Final = 6


class _Span(NamedTuple):
    """Windows `first` to `last` (both included) of the file number `file`."""

    file: int
    first: int
    last: int


def fingerprints_of(scanned: Scan, *, passed_over: Collection[int]) -> tuple[Fingerprint, ...]:
    """Hash the windows of an already scanned file, without the lines `passed_over`."""
    lines = [line for line in scanned.code if scanned.words.get(line, 0) >= _WORDS_MIN and line not in passed_over]
    windows = zip(*(lines[offset:] for offset in range(WINDOW_LINES)), strict=False)
    return tuple(
        Fingerprint(window[0], window[-1], _digest("\n".join(scanned.code[line] for line in window)))
        for window in windows
    )


def duplicates(reports: Sequence[FileReport]) -> list[Duplicate]:
    """Find the blocks that stand in more than one place, the most repeated lines first.

    Each copy is compared with the next one only, so the work grows with the lines, not with the pairs of copies.
    """
    digests = [[print_.digest for print_ in report.fingerprints] for report in reports]
    groups: dict[_Span, _Span] = {}
    for left, right in _matches(digests):
        _join(groups, left, right)
    members: dict[_Span, list[_Span]] = defaultdict(list)
    for span in groups:
        members[_root(groups, span)].append(span)
    found = [
        Duplicate(
            code_lines=root.last - root.first + WINDOW_LINES,
            places=tuple(_place(reports, span) for span in sorted(spans)),
        )
        for root, spans in members.items()
    ]
    return sorted(found, key=lambda block: (-block.code_lines * (len(block.places) - 1), _key(block.places[0])))


def _matches(digests: list[list[int]]) -> Iterator[tuple[_Span, _Span]]:
    """Yield each pair of spans that are equal and cannot grow further."""
    seen: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for file, windows in enumerate(digests):
        for index, digest in enumerate(windows):
            seen[digest].append((file, index))
    seeds = sorted(pair for places in seen.values() for pair in pairwise(places))
    covered: dict[tuple[int, int, int], int] = {}
    for (left, i), (right, j) in seeds:
        if left == right and j - i < WINDOW_LINES:
            continue  # a run of equal lines matches itself, shifted
        diagonal = (left, right, j - i)
        if i <= covered.get(diagonal, -1):
            continue
        before, after = _grow(digests[left], i, digests[right], j)
        covered[diagonal] = i + after
        more = before + after
        if left == right:
            more = min(more, j - i - WINDOW_LINES)  # two copies in one file may touch, not overlap
        yield _Span(left, i - before, i - before + more), _Span(right, j - before, j - before + more)


def _grow(left: list[int], i: int, right: list[int], j: int) -> tuple[int, int]:
    """Return by how many windows the match at `i` and `j` goes on to the front and to the end."""
    before = after = 0
    while before < min(i, j) and left[i - before - 1] == right[j - before - 1]:
        before += 1
    while max(i - len(left), j - len(right)) + after + 1 < 0 and left[i + after + 1] == right[j + after + 1]:
        after += 1
    return before, after


def _join(groups: dict[_Span, _Span], left: _Span, right: _Span) -> None:
    left, right = sorted((_root(groups, left), _root(groups, right)))
    groups[right] = left


def _root(groups: dict[_Span, _Span], span: _Span) -> _Span:
    groups.setdefault(span, span)
    while groups[span] != span:
        groups[span] = groups[groups[span]]
        span = groups[span]
    return span


def _place(reports: Sequence[FileReport], span: _Span) -> Place:
    report = reports[span.file]
    return Place(
        path=report.path,
        line=report.fingerprints[span.first].line,
        line_end=report.fingerprints[span.last].line_end,
    )


def _key(place: Place) -> tuple[str, int]:
    return place.path, place.line


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=_DIGEST_BYTES).digest(), "big")
