"""Secrets are blotted out while output is captured, also where a secret is split over two reads.

    reads      …"key": "sk-ab│cdef123" …
    written    …"key": "     │***" …          the end that may begin a secret waits for the next read

What is written does not depend on where the reads were cut. A secret is known in the forms in which programs print it: as it is, and
inside a JSON string, also inside a JSON string that stands in one. Pure, and standard library only: the keeper uses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

__all__ = ["LENGTH_MIN", "MASK", "Redactor", "forms"]

MASK: Final = b"***"

# A shorter value is found in innocent text too ("true", "main"), and its absence would give it away.
LENGTH_MIN: Final = 8


def forms(secret: str) -> set[bytes]:
    """Return the bytes under which a program may print `secret`; nothing for one below LENGTH_MIN characters."""
    if len(secret) < LENGTH_MIN:
        return set()
    found = {secret}
    for _ in range(2):  # in a JSON string, and that in another one
        found |= {escaped for text in found for escaped in _in_json(text)}
    return {text.encode("utf-8", "surrogateescape") for text in found}


def _in_json(text: str) -> Iterable[str]:
    """Yield the contents of the JSON strings that stand for `text`, as the usual encoders write them."""
    for is_ascii in (True, False):
        escaped = json.dumps(text, ensure_ascii=is_ascii)[1:-1]
        for slashed in (escaped, escaped.replace("/", "\\/")):
            yield slashed
            yield re.sub(r"\\u[0-9a-f]{4}", lambda code: "\\u" + code[0][2:].upper(), slashed)


class Redactor:
    """Puts MASK in the place of secrets in one stream of bytes: leftmost first, of several there the longest.

    Holds back no more than the longest form of a secret, and nothing at all after a line that ends in no secret.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._needles = sorted({form for secret in secrets for form in forms(secret)}, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._needles))) if self._needles else None
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes, and return what can be written by now."""
        if self._pattern is None:
            return data
        data = self._held + data if self._held else data
        done: list[bytes] = []
        position, held_from = 0, self._doubtful(data, 0)
        # `in` is a memory search and many times faster than the pattern; most reads have no secret.
        if any(needle in data for needle in self._needles):
            while (match := self._pattern.search(data, position)) and match.start() < held_from:
                done += (data[position : match.start()], MASK)
                position = match.end()
                if position > held_from:
                    held_from = self._doubtful(data, position)
        self._held = data[held_from:]
        if not done and not self._held:
            return data
        return b"".join([*done, data[position:held_from]])

    def end(self) -> bytes:
        """Return the rest. A piece of a secret that is long enough to tell something is blotted out too."""
        held, self._held = self._held, b""
        # Held back for a longer secret that never came, it may have a whole short one in it.
        text = self._pattern.sub(MASK, held) if self._pattern else held
        return MASK if text == held and len(held) >= LENGTH_MIN else text

    def _doubtful(self, data: bytes, begin: int) -> int:
        """Return from where on `data` may begin a secret whose end is not here yet; its length, if nowhere."""
        found = len(data)
        for needle in self._needles:
            place = max(begin, len(data) - len(needle) + 1)
            while (place := data.find(needle[:1], place, found)) >= 0:
                if needle.startswith(data[place:]):
                    found = place
                    break
                place += 1
        return found
