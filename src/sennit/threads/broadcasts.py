"""Broadcasts: one file of lines, appended only, whose oldest lines go when it has grown too large.

    {"from":5242880}                  there only once lines were dropped: the position of the line that follows
    {"at_us":…,"value":…}
    …

A reader remembers how far it has got as a position: so many bytes into all that was ever said. Dropping lines moves no
position, so nobody reads anything twice, and who was far behind goes on with the oldest line that is left.
"""

from __future__ import annotations

import os
import re
from typing import Final

from sennit.threads.folders import Folder

__all__ = ["append", "read"]

_NAME: Final = "broadcasts"
_HEAD: Final = re.compile(rb'\{"from":(\d+)\}\n')
_HEAD_BYTES_MAX: Final = 64


def append(folder: Folder, line: bytes, bytes_max: int) -> None:
    """Append a line that ends in a newline. If the file is larger than `bytes_max` then, drop its older half.

    The caller holds the lock of all who append. The file is replaced as a whole, so readers take no lock.
    """
    if folder.append(_NAME, line) <= bytes_max:
        return
    content = folder.read(_NAME) or b""
    base, begin = _head(content[:_HEAD_BYTES_MAX])
    last = content.rfind(b"\n", 0, len(content) - 1) + 1  # stays, however long it is
    cut = min(content.find(b"\n", max(begin, len(content) - bytes_max // 2) - 1) + 1, last)
    if cut > begin:
        folder.replace(_NAME, b'{"from":%d}\n' % (base + cut - begin), content[cut:])


def read(folder: Folder, position: int) -> tuple[list[bytes], int]:
    """Return the whole lines from `position` on, and the position behind them.

    All that there is, if lines from there on were dropped, or the file was deleted and has begun anew.
    """
    with folder.opened(_NAME) as file:
        if file is None:
            return [], 0
        base, begin = _head(file.readline(_HEAD_BYTES_MAX))
        end = base + os.fstat(file.fileno()).st_size - begin
        if base < position <= end:
            file.seek(begin + position - base - 1)
            if file.read(1) != b"\n":
                position = base
        else:
            position = base
            file.seek(begin)
        lines = file.read()
    whole = lines[: lines.rfind(b"\n") + 1]
    return whole.split(b"\n")[:-1], position + len(whole)


def _head(start: bytes) -> tuple[int, int]:
    """Return the position of the first line, and where in the file it is."""
    found = _HEAD.match(start)
    return (0, 0) if found is None else (int(found[1]), found.end())
