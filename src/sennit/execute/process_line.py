"""The line before the worker processes: declared bodies first, and among four one that was moved.

    cpu=True  ─► ▒▒▒▒▒▒ ─┐ three
                         ├─► the next free process
    moved     ─► ▒▒▒▒▒▒ ─┘ and one

Who says `cpu=True` counts on a process for each slot of its queue. A body that was moved without being told would take it
away if it stood in the same line; it would never come to its turn if it always stood behind.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from sennit.execute.process_handle import Call

__all__ = ["Line"]

_GUEST_EVERY: Final = 4


class Line:
    """Calls that wait for a process, each kind in its order. Belongs to one event loop."""

    def __init__(self) -> None:
        self._declared: OrderedDict[Call, None] = OrderedDict()
        self._guests: OrderedDict[Call, None] = OrderedDict()
        self._turn = 0

    def __len__(self) -> int:
        return len(self._declared) + len(self._guests)

    def __contains__(self, call: object) -> bool:
        return call in self._declared or call in self._guests

    def __iter__(self) -> Iterator[Call]:
        return iter((*self._declared, *self._guests))

    def add(self, call: Call) -> None:
        """Put a call at the end of its line."""
        self._of(call)[call] = None

    def add_first(self, call: Call) -> None:
        """Put a call at the head of its line."""
        line = self._of(call)
        line[call] = None
        line.move_to_end(call, last=False)

    def remove(self, call: Call) -> None:
        """Take a call out; it must stand there."""
        del self._of(call)[call]

    def pop(self) -> Call:
        """Take the next one out; there must be one."""
        line = self._guests or self._declared
        if self._declared and self._guests:
            self._turn = (self._turn + 1) % _GUEST_EVERY
            line = self._declared if self._turn else self._guests
        call, _ = line.popitem(last=False)
        return call

    def _of(self, call: Call) -> OrderedDict[Call, None]:
        return self._guests if call.request.runner_ref else self._declared
