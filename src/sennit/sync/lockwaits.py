"""Who waits for whom: a deadlock of our locks is named by the one that would complete it, instead of hanging.

    A holds x, waits for y ──► B holds y, about to wait for x ──► blockers(x) = A ──► A waits ──► blockers(y) = B: a cycle

Only waits without a time-out are in the graph; one with a time-out ends by itself. It is looked at when a lock was not
free for 10 ms, so locks that are free, or soon are, pay nothing. The last one of a cycle to begin waiting sees all others, because each is
entered before it looks. The graph is read without a lock around it, so a cycle counts only if a second look finds the
same waits: whoever was waiting at both looks was waiting in between, and has neither taken nor given back a lock.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from types import CodeType
from typing import Any, Final, NamedTuple, Protocol

from sennit.errors import LockDeadlock

__all__ = [
    "GRACE_S",
    "Blocked",
    "Holder",
    "Place",
    "WaitedFor",
    "calling_place",
    "end_wait",
    "enter_wait",
    "holder_name",
]

GRACE_S: Final = 0.01
"""How long a wait has lasted before it is entered: most end sooner, and a deadlock can wait."""

Holder = Hashable
"""Who holds a lock: the identifier of an OS thread, or an asyncio task."""

OUR_FILES: Final[set[str]] = {__file__, threading.__file__}
"""Files whose frames are not the caller's; each module of locks adds itself."""


class Place(NamedTuple):
    """Where a lock was asked for; text only when somebody reads it."""

    code: CodeType | None
    line: int

    def __str__(self) -> str:
        return "?" if self.code is None else f"{self.code.co_qualname} ({Path(self.code.co_filename).name}:{self.line})"


def calling_place() -> Place:
    """Return the innermost place outside of our locks."""
    frame = sys._getframe(1)  # noqa: SLF001 - the only way to a place without a traceback
    while frame.f_code.co_filename in OUR_FILES:
        if frame.f_back is None:
            return Place(None, 0)
        frame = frame.f_back
    return Place(frame.f_code, frame.f_lineno)


def holder_name(holder: Holder) -> str:
    """Return `OS thread 'worker-1'` or `task 'agent-7'`."""
    get_name: Callable[[], str] | None = getattr(holder, "get_name", None)
    if get_name is not None:
        return f"task {get_name()!r}"
    for os_thread in threading.enumerate():
        if os_thread.ident == holder:
            return f"OS thread {os_thread.name!r}"
    return f"OS thread {holder} (ended)"


class WaitedFor(Protocol):
    """A lock as the graph sees it."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    def blockers(self, blocked: Blocked) -> Iterable[Holder]:
        """Return who must let go before this wait can end."""


class Blocked:
    """One wait without a time-out; a new object per wait, so that two waits cannot be mistaken for one."""

    __slots__ = ("holder", "lock", "place", "token")

    def __init__(self, holder: Holder, lock: WaitedFor, token: object = None) -> None:
        self.holder = holder
        self.lock = lock
        self.token = token  # what the lock itself knows of the wait
        self.place = calling_place()

    def __str__(self) -> str:
        return f"{holder_name(self.holder)} waits for {self.lock.name!r} at {self.place}"


_blocked: dict[Any, Blocked] = {}


def enter_wait(blocked: Blocked) -> None:
    """Enter a wait; `end_wait` must follow, also after an error here.

    Raises:
        LockDeadlock: it would never end.
    """
    _blocked[blocked.holder] = blocked
    cycle = _cycle(blocked)
    if cycle and cycle == _cycle(blocked):
        raise LockDeadlock(tuple(str(one) for one in cycle), name=blocked.lock.name)


def end_wait(blocked: Blocked) -> None:
    """Take a wait out again."""
    _blocked.pop(blocked.holder, None)


if hasattr(
    os, "register_at_fork"
):  # those that wait are not in the child, and its OS threads may get their identifiers
    os.register_at_fork(after_in_child=_blocked.clear)


def _cycle(start: Blocked) -> list[Blocked]:
    """Return the waits that lead from `start` back to it; empty if none do."""
    path: list[Blocked] = []
    seen: set[Holder] = set()  # a chain is at most as long as there are locks with waiters

    def leads_back(blocked: Blocked) -> bool:
        path.append(blocked)
        for holder in blocked.lock.blockers(blocked):
            if holder == start.holder:
                return True
            following = _blocked.get(holder)
            if following is not None and following.lock is blocked.lock:
                continue  # it stands before us in one queue: whoever blocks it blocks us, and has been named already
            if following is not None and holder not in seen:
                seen.add(holder)
                if leads_back(following):
                    return True
        path.pop()
        return False

    return path if leads_back(start) else []
