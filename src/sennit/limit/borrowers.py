"""Who has a permit, who waits for one, and how a call that raised has gone.

    waiting, by priority:  urgent ▸ ▸      normal ▸ ▸ ▸      low ▸
                                └────────── the one with the smallest place is next ──► Permit

A place is the time of arrival plus the head start that the priorities have on each other (`model.order`): first come,
first served within a priority, and a low one that has waited for ten minutes goes before a normal one of now.

None of this is safe for several OS threads; the limiter's lock guards it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

from sennit.limit.feedback_errors import read_exception
from sennit.model.order import HANDICAP_BY_NUMBER_US, Priority
from sennit.model.provider import CallOutcome
from sennit.sync.ack import call_in

if TYPE_CHECKING:
    from sennit.limit.limiter import AdaptiveLimiter


def outcome_of(error: BaseException | None) -> CallOutcome:
    """Return how a call went that raised `error`, or did not when it is None.

    The errors of every client are known by their status or name (`feedback.read_exception`); what unwinds a body or ends
    the process says nothing of the provider, and anything else is an error.
    """
    if error is None:
        return "ok"
    if not isinstance(error, Exception):
        return "cancelled"
    report = read_exception(error)
    return "error" if report is None else report.outcome


class Permit:
    """One call may be made, until it is given back to the limiter that granted it. True, unlike a `Rejected`.

    Attributes:
        tokens: units of work that the call came to; set it before the permit is given back. 0 is not reported.
        outcome: set it when the call went in a way that no exception tells; None goes by the exception.
        granted_us: on the limiter's clock. waited_us: how long it was waited for.
        is_held: False once it is given back.
    """

    __slots__ = ("granted_us", "is_held", "limiter", "outcome", "tokens", "waited_us")

    def __init__(self, limiter: AdaptiveLimiter, granted_us: int, waited_us: int) -> None:
        self.limiter = limiter
        self.granted_us = granted_us
        self.waited_us = waited_us
        self.is_held = True
        self.tokens = 0
        self.outcome: CallOutcome | None = None

    def __bool__(self) -> Literal[True]:
        return True

    def report(self, *, outcome: CallOutcome | None = None, tokens: int = 0) -> None:
        """Say how the call went; both count when the permit is given back."""
        self.outcome = outcome
        self.tokens = tokens


class Waiter:
    """Somebody who waits: a future on an event loop, or an OS thread at a gate."""

    __slots__ = ("future", "gate", "loop", "permit", "place_us", "priority", "since_us")

    def __init__(self, priority: int, since_us: int, loop: asyncio.AbstractEventLoop | None) -> None:
        self.priority = priority
        self.since_us = since_us
        self.place_us = since_us + HANDICAP_BY_NUMBER_US[priority]
        self.loop = loop
        self.permit: Permit | None = None
        if loop is not None:
            self.future: asyncio.Future[None] = loop.create_future()
        else:
            # A bare lock and not an Event, for the reason that sync/ack.py gives.
            self.gate = threading.Lock()
            self.gate.acquire()

    def wake(self, here: asyncio.AbstractEventLoop | None) -> bool:
        """Tell it of its permit. False when nobody listens any more: its loop is closed.

        Args:
            here: the loop that the caller runs on: its own futures need no wake-up call, which costs tens of µs.
        """
        if self.loop is None:
            self.gate.release()
            return True
        if self.loop is here:
            _set(self.future)
            return True
        return call_in(self.loop, _set, self.future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():  # it may have been cancelled; then it passes its permit on
        future.set_result(None)


class WaitLines:
    """One line per priority."""

    __slots__ = ("_lines", "count")

    def __init__(self) -> None:
        self._lines: tuple[OrderedDict[Waiter, None], ...] = tuple(OrderedDict() for _ in Priority)
        self.count = 0

    def join(self, waiter: Waiter) -> None:
        """Stand at the end of the line of its priority."""
        self._lines[waiter.priority][waiter] = None
        self.count += 1

    def leave(self, waiter: Waiter) -> None:
        """Give up waiting."""
        del self._lines[waiter.priority][waiter]
        self.count -= 1

    def pop(self) -> Waiter:
        """Return who is next, out of line.

        Raises:
            ValueError: nobody waits.
        """
        head = min((next(iter(line)) for line in self._lines if line), key=_place)
        self.leave(head)
        return head

    def counts(self) -> dict[str, int]:
        """Return how many wait, by the name of the priority."""
        return {priority.name.lower(): len(self._lines[priority]) for priority in Priority}


def _place(waiter: Waiter) -> int:
    return waiter.place_us
