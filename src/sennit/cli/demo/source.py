"""A Python file as text and as tokens, read so that no file can raise.

`read_source` follows tokenize.open (PEP 263 cookie, byte order mark, universal newlines); what it cannot decode it
replaces, and says so in `problem`. `scan` splits a text into code, comments and the rest in one pass.
"""

from __future__ import annotations

import ast
import io
import threading
import tokenize
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_LAYOUT: Final = frozenset(
    (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER)
)
_WORDS: Final = frozenset((tokenize.NAME, tokenize.NUMBER, tokenize.STRING))

# warnings.catch_warnings swaps a table of the whole process; two OS threads inside it can leave it swapped.
_warnings_lock = threading.Lock()


class SourceText(msgspec.Struct, frozen=True):
    """The text of a file, and why part of it could not be decoded ("" when all of it could)."""

    text: str
    problem: str = ""


@dataclass(slots=True)
class Scan:
    """The tokens of a file, by line.

    Attributes:
        code_lines: numbers of all lines that hold code.
        code: per line on which a token starts, its tokens joined by one blank each.
        words: how many names, numbers and strings start on that line.
        comments: line number and text, in order.
    """

    code_lines: set[int] = field(default_factory=set)
    code: dict[int, str] = field(default_factory=dict)
    words: dict[int, int] = field(default_factory=dict)
    comments: list[tuple[int, str]] = field(default_factory=list)


def read_source(path: Path) -> SourceText:
    """Read a Python file as the interpreter would.

    Raises:
        OSError: the file cannot be read at all.
    """
    data = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
        problem = ""
    except (SyntaxError, UnicodeDecodeError) as error:
        text = data.decode("utf-8", errors="replace")
        problem = f"not decodable: {error}"
    return SourceText(text=with_unix_newlines(text), problem=problem)


def with_unix_newlines(text: str) -> str:
    """Return `text` with each line ended by a line feed alone, as the tokenizer counts lines."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def count_lines(text: str) -> int:
    """Count lines, also a last one without an end; str.splitlines would split at form feeds too."""
    return text.count("\n") + (not text.endswith("\n") if text else 0)


def parse(text: str) -> ast.Module:
    """Parse without telling the user about odd escapes in code that is not theirs.

    Raises:
        SyntaxError: also for a null byte, an unencodable character or nesting the compiler gives up on.
    """
    try:
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except SyntaxError:
        raise
    except ValueError as error:  # null bytes before Python 3.11.4, lone surrogates
        raise SyntaxError(str(error)) from error
    except (RecursionError, MemoryError) as error:
        raise SyntaxError("nested too deeply for Python's own parser") from error


def scan(text: str, *, docstrings_at: frozenset[tuple[int, int]] = frozenset()) -> Scan:
    """Split `text` into code and comments.

    Args:
        docstrings_at: (line, column) where docstrings start; they count as comments do.
    """
    result = Scan()
    try:
        _fill(result, tokenize.generate_tokens(io.StringIO(text).readline), docstrings_at)
    except (tokenize.TokenError, SyntaxError, ValueError):  # ValueError: a lone surrogate, since Python 3.12
        return _scan_by_line(text)
    return result


def _fill(result: Scan, tokens: Iterable[tokenize.TokenInfo], docstrings_at: frozenset[tuple[int, int]]) -> None:
    parts: dict[int, list[str]] = {}
    for kind, string, (line, column), (line_end, _), _ in tokens:
        if kind in _LAYOUT or (kind == tokenize.STRING and (line, column) in docstrings_at):
            continue
        if kind == tokenize.COMMENT:
            result.comments.append((line, string))
            continue
        result.code_lines.update(range(line, line_end + 1))
        parts.setdefault(line, []).append(string)
        if kind in _WORDS:
            result.words[line] = result.words.get(line, 0) + 1
    result.code = {line: " ".join(strings) for line, strings in parts.items()}


def _scan_by_line(text: str) -> Scan:
    """Return an estimate for text that has no tokens: what starts with "#" is a comment, the rest is code."""
    result = Scan()
    for line, raw in enumerate(text.split("\n"), start=1):
        stripped = raw.strip()
        if stripped.startswith("#"):
            result.comments.append((line, stripped))
        elif stripped:
            result.code_lines.add(line)
    return result
