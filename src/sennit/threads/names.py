"""Any text becomes a file name: readable, safe, and never that of another text.

    notes.v2       ─► notes.v2                                    plain names stay as they are
    Über uns/../A  ─► uber-uns-..-a~5d41402abc4b2a76b9719d911017c592    all others: what is readable of them, and a digest

Plain names have no capitals, so that "A" and "a" differ also where file names do not. A `~` is in no plain name: names
with one are free for digests and for files of our own.
"""

from __future__ import annotations

import re
import unicodedata
from hashlib import blake2b
from typing import Final

from sennit.errors import UsageError

__all__ = ["readable", "safe_name"]

_PLAIN: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,78}[a-z0-9_-])?")
_UNREADABLE: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_READABLE_CHARS: Final = 40
_DIGEST_BYTES: Final = 16


def safe_name(text: object, what: str) -> str:
    """Return a file name of at most 80 ASCII characters for `text`, another one for every other text.

    Args:
        what: names the argument in the error: "thread_id".

    Raises:
        UsageError: `text` is empty, or no text.
    """
    if not isinstance(text, str) or not text:
        raise UsageError(
            f"{what} is {text!r}",
            why="it names a folder or a file, and different ones must not end up in one place",
            fix="use any text that is not empty",
        )
    if _PLAIN.fullmatch(text):
        return text
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{readable(text).lower()}~{digest}"


def readable(text: str) -> str:
    """Return up to 40 harmless characters of `text`; different texts may give the same, or nothing."""
    plain = unicodedata.normalize("NFKD", text[: 4 * _READABLE_CHARS]).encode("ascii", "ignore").decode()
    return _UNREADABLE.sub("-", plain)[:_READABLE_CHARS].strip("-.")
