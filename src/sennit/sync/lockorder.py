"""The order in which locks are taken, and the first acquisition that breaks it: a deadlock found without it happening.

    once, anywhere:   holding a, takes b        a ─► b     noted, with where
    later, anywhere:  holding b, takes a        b ─► a     closes a cycle: LockOrderError, with both places

Off by default; `SENNIT_LOCK_ORDER=1` in the environment or `enable()` turns it on for locks made from then on, at about
2 µs per acquisition that holds another lock already. Our tests run with it.

Locks are told apart by name, as a class: that `Account` locks come before `Book` locks is a rule worth having, whichever
account. Two of one name, held together, are told apart one by one; of those orders the last 10,000 are kept. Reading and writing count alike: two readers that
nest in opposite orders do deadlock, once a writer waits for each. An acquisition that does not wait (`blocking=False`)
sets no rule, but what it holds counts.

Source: lockdep (Ingo Molnar, Linux, Documentation/locking/lockdep-design.rst), its classes and its trylock rule.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from sennit.errors import LockOrderError
from sennit.sync.lockwaits import OUR_FILES, Holder, Place, calling_place, holder_name

__all__ = ["LockOrder", "checking", "current", "disable", "enable", "serial"]

OUR_FILES.add(__file__)
VARIABLE: Final = "SENNIT_LOCK_ORDER"

TWINS_MAX: Final = 10_000
"""Orders between two locks of one name that are kept, at about 0.5 kB: a program may make such locks for ever."""

_serials = itertools.count(1)


def serial() -> int:
    """Return a number that no other lock of this process has."""
    return next(_serials)


class _Held(NamedTuple):
    name: str
    serial: int
    place: Place


class _Edge(NamedTuple):
    """`after` was taken while `before` was held; seen first here."""

    before: str
    after: str
    who: str
    held_at: Place
    taken_at: Place

    def __str__(self) -> str:
        return (
            f"{self.after!r} after {self.before!r}: first by {self.who} at {self.taken_at}, "
            f"with {self.before!r} held since {self.held_at}"
        )


class LockOrder:
    """The orders seen so far. Usable from any OS thread; each lock keeps the one it was made under."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._edges: dict[str, dict[str, _Edge]] = {}
        self._twins: deque[_Edge] = deque()  # those between two locks of one name, the oldest first
        self._held: dict[Any, list[_Held]] = {}  # only the holder itself touches its list

    def acquiring(self, holder: Holder, name: str, number: int) -> None:
        """Note that `holder` is about to wait for a lock.

        Raises:
            LockOrderError: somebody takes them in the opposite order; nothing was acquired.
        """
        held = self._held.get(holder)
        if not held:
            return
        for one in held:
            if one.serial == number:
                continue  # the lock itself says what it thinks of that
            same = one.name == name
            before = f"{one.name}#{one.serial}" if same else one.name
            after = f"{name}#{number}" if same else name
            if after not in self._edges.get(before, ()):
                edge = _Edge(before, after, holder_name(holder), one.place, calling_place())
                self._add(edge, is_twins=same)

    def acquired(self, holder: Holder, name: str, number: int) -> None:
        """Note that `holder` has it."""
        self._held.setdefault(holder, []).append(_Held(name, number, calling_place()))

    def released(self, holder: Holder, number: int) -> None:
        """Note that `holder` has it no more. Harmless if it never was noted."""
        held = self._held.get(holder)
        if held is None:
            return
        for at in reversed(range(len(held))):
            if held[at].serial == number:
                del held[at]
                break
        if not held:
            del self._held[holder]

    def edges(self) -> tuple[str, ...]:
        """Return the orders seen, a sentence each."""
        with self._guard:
            return tuple(str(edge) for after in self._edges.values() for edge in after.values())

    def _forget(self, edge: _Edge) -> None:
        after = self._edges[edge.before]
        del after[edge.after]
        if not after:
            del self._edges[edge.before]

    def _add(self, edge: _Edge, *, is_twins: bool) -> None:
        with self._guard:
            if edge.after in self._edges.get(edge.before, ()):
                return  # somebody else has seen it at the same moment
            path = self._path(edge.after, edge.before)
            if path is None:
                self._edges.setdefault(edge.before, {})[edge.after] = edge
                if is_twins:
                    self._twins.append(edge)
                    if len(self._twins) > TWINS_MAX:
                        self._forget(self._twins.popleft())
                return
        raise LockOrderError((str(edge), *map(str, path)), names=(edge.before, *(one.before for one in path)))

    def _path(self, start: str, end: str) -> list[_Edge] | None:
        """Return the edges from `start` to `end`, or None."""
        came: dict[str, _Edge] = {}
        todo = [start]
        while todo:
            at = todo.pop()
            if at == end:
                path: list[_Edge] = []
                while at != start:
                    path.append(came[at])
                    at = came[at].before
                return path[::-1]
            for after, edge in self._edges.get(at, {}).items():
                if after not in came and after != start:
                    came[after] = edge
                    todo.append(after)
        return None


_current: LockOrder | None = LockOrder() if os.environ.get(VARIABLE, "") not in {"", "0"} else None


def current() -> LockOrder | None:
    """Return what locks made now are checked by, or None."""
    return _current


def enable() -> LockOrder:
    """Check the locks made from now on; those made before stay as they are."""
    global _current  # noqa: PLW0603 - the switch of a process
    if _current is None:
        _current = LockOrder()
    return _current


def disable() -> None:
    """Check no locks made from now on."""
    global _current  # noqa: PLW0603
    _current = None


@contextmanager
def checking(*, on: bool = True) -> Iterator[LockOrder]:
    """Check the locks made in this block, by orders of its own: one test's orders are no rule for the next.

    Args:
        on: False checks none of them.
    """
    global _current  # noqa: PLW0603
    order = LockOrder()
    before, _current = _current, order if on else None
    try:
        yield order
    finally:
        _current = before
