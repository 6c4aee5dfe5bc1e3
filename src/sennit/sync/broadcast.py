"""A topic with subscribers: each gets every message, in the order of publishing, as many at once as wait for it.

    publish(m4) ─► topic ─┬─► subscription  m3 m4        ─► [m3, m4]      keeps up
                          ├─► subscription  m1 m2 m3 m4  ─► …             full: what now is its own choice (`when_full`)
                          └─► subscription  m4           ─► [m4]

                     "block"        the publisher waits; its message, and those after it, go to nobody before there is room
                     "drop_oldest"  the oldest message makes room, and is counted in `dropped`
                     "error"        the subscription ends: it gives what it holds, then raises SubscriberTooSlow

Nothing is lost without a word. Publishers and subscribers may be coroutines of any loop, or OS threads: `await
topic.publish(m)` or `topic.publish_blocking(m)`, `async for batch in subscription` or `for batch in subscription`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Generic, Literal, TypeVar

from sennit.errors import BatcherClosed, SettingsError, SubscriberTooSlow, UsageError
from sennit.sync.ack import Ack, in_event_loop, resolve_all
from sennit.sync.pending import Flow, got, run, run_blocking

__all__ = ["Subscription", "Topic", "TopicStatistics", "WhenFull"]

M = TypeVar("M")

WhenFull = Literal["block", "drop_oldest", "error"]
_POLICIES: Final = ("block", "drop_oldest", "error")

_log = logging.getLogger("sennit")


@dataclass(frozen=True, slots=True)
class TopicStatistics:
    """What a topic has done so far; `publishers_waiting` for a full subscription that blocks."""

    published: int
    subscribers: int
    publishers_waiting: int
    dropped: int


@dataclass(slots=True, eq=False)
class _Box(Generic[M]):
    """What a topic holds for one subscriber, under the topic's lock."""

    waiting_max: int
    items_max: int
    when_full: WhenFull
    messages: deque[M] = field(default_factory=deque)
    something: Ack[None] = field(default_factory=Ack)  # there are messages, or it is over; else a new one
    dropped: int = 0
    missed: int = 0  # since it has ended as too slow
    closed: bool = False

    @property
    def full(self) -> bool:
        return len(self.messages) >= self.waiting_max

    @property
    def blocks(self) -> bool:
        return self.when_full == "block" and self.full


class Subscription(AbstractContextManager["Subscription[M]"], Generic[M]):
    """One subscriber's messages. Read it with `async for` or `for`; leave it with `close`, or as a context manager."""

    def __init__(
        self,
        box: _Box[M],
        taken: Callable[[_Box[M]], list[M] | None],
        left: Callable[[_Box[M]], None],
    ) -> None:
        self._box = box
        self._taken = taken
        self._left = left

    @property
    def dropped(self) -> int:
        """Messages that made room for younger ones ("drop_oldest"); the log says so at the first one."""
        return self._box.dropped

    async def take(self) -> list[M]:
        """Wait for messages; return the oldest, up to `items_max`. An empty list: the topic or subscription is closed.

        Cancelled, it has taken nothing.

        Raises:
            SubscriberTooSlow: it was full, and `when_full` is "error".
        """
        return await run(self._take())

    def take_blocking(self) -> list[M]:
        """Do as `take`, blocking the OS thread.

        Raises:
            SubscriberTooSlow: as `take`. UsageError: on an event loop.
        """
        _check_no_loop("take")
        return run_blocking(self._take())

    def _take(self) -> Flow[list[M]]:
        while True:
            something = self._box.something
            if not something.done:
                yield from got(something)
            batch = self._taken(self._box)
            if batch is not None:
                return batch

    async def __aiter__(self) -> AsyncIterator[list[M]]:
        while batch := await self.take():
            yield batch

    def __iter__(self) -> Iterator[list[M]]:
        while batch := self.take_blocking():
            yield batch

    def __len__(self) -> int:
        """Return how many messages wait."""
        return len(self._box.messages)

    def close(self) -> None:
        """Leave the topic: nothing more comes, and publishers it held back go on. What it holds can still be taken."""
        self._left(self._box)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Topic(Generic[M]):
    """Messages to all who have subscribed; in one order for all of them.

    topic = Topic[str]()
    with topic.subscribe() as news:
        await topic.publish("hello")
        async for batch in news: ...
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._boxes: list[_Box[M]] = []
        self._publishers: deque[tuple[M, Ack[None]]] = deque()  # whose message is not out, in order
        self._blocking = 0  # how many of the boxes are full and block
        self._closed = False
        self._published = 0
        self._dropped = 0

    def subscribe(
        self, *, waiting_max: int = 1000, items_max: int = 100, when_full: WhenFull = "block"
    ) -> Subscription[M]:
        """Return a subscription to all that is published from now on; use it as `with topic.subscribe() as news:`.

        Leaving a loop over it early does not end it, the `with` does.

        Args:
            waiting_max: messages it holds at most.
            items_max: messages it gives at once, at most.
            when_full: see the top of this file. With "block" a subscription that is neither read nor closed holds up
                every publisher.

        Raises:
            BatcherClosed: the topic is closed.
            SettingsError: a bound is below 1, or there is no such `when_full`.
        """
        if waiting_max < 1 or items_max < 1:
            raise SettingsError(f"waiting_max={waiting_max} and items_max={items_max} must be at least 1")
        if when_full not in _POLICIES:
            raise SettingsError(f"when_full={when_full!r} is none of {', '.join(_POLICIES)}")
        box: _Box[M] = _Box(waiting_max, items_max, when_full)
        with self._lock:
            self._check_open()
            self._boxes.append(box)
        return Subscription(box, self._taken, self._left)

    async def publish(self, message: M) -> None:
        """Give every subscriber the message; waits while one that blocks is full. Cancelled before it is out: to nobody.

        Raises:
            BatcherClosed: the topic is closed.
        """
        await run(self._publish(message))

    def publish_blocking(self, message: M) -> None:
        """Do as `publish`, blocking the OS thread.

        Raises:
            BatcherClosed: the topic is closed. UsageError: on an event loop.
        """
        _check_no_loop("publish")
        run_blocking(self._publish(message))

    def statistics(self) -> TopicStatistics:
        """Return what it has done so far."""
        with self._lock:
            return TopicStatistics(self._published, len(self._boxes), len(self._publishers), self._dropped)

    def close(self) -> None:
        """Take nothing more. Subscribers get what is out, then their iteration ends; publishers that wait get an error."""
        with self._lock:
            self._closed = True
            error = BatcherClosed("the topic was closed before the message was out")
            settled = [(ack, None, error) for _, ack in self._publishers]
            self._publishers.clear()
            boxes, self._boxes = self._boxes, []
            for box in boxes:
                box.closed = True
        resolve_all([*settled, *((box.something, None, None) for box in boxes)])

    def _check_open(self) -> None:
        if self._closed:
            raise BatcherClosed("the topic is closed")

    def _publish(self, message: M) -> Flow[None]:
        turn: Ack[None] = Ack()
        with self._lock:
            self._check_open()
            waits = self._blocking > 0  # as long as any publisher waits, too
            if waits:
                self._publishers.append((message, turn))
            wake = [] if waits else self._put(message)
        _wake(wake)
        if waits:
            try:
                yield from got(turn)
            except BaseException:
                with self._lock:
                    self._publishers = deque(entry for entry in self._publishers if entry[1] is not turn)
                raise

    # ------------------------------------------------------------ the caller holds the lock

    def _put(self, message: M) -> list[Ack[None]]:
        """Give a message to all; return whom to wake, once the lock is free."""
        self._published += 1
        wake = []
        for box in self._boxes:
            if box.missed or (box.full and box.when_full == "error"):
                box.missed += 1
                continue
            if box.full:
                box.messages.popleft()
                box.dropped += 1
                self._dropped += 1
                if box.dropped == 1:
                    _log.warning("a subscriber is more than %d messages behind: the oldest go", box.waiting_max)
            box.messages.append(message)
            self._blocking += box.blocks
            if not box.something.done:
                wake.append(box.something)
        return wake

    def _go_on(self) -> list[Ack[None]]:
        """Let publishers go on for whom there is room now; return whom to wake."""
        wake = []
        while self._publishers and not self._blocking:
            message, turn = self._publishers.popleft()
            wake += [*self._put(message), turn]
        return wake

    # ------------------------------------------------------------ for subscriptions

    def _taken(self, box: _Box[M]) -> list[M] | None:
        """Take from a subscription; [] if it is over, None if somebody else took it all."""
        with self._lock:
            if not box.messages:
                if box.missed:
                    raise SubscriberTooSlow(waiting_max=box.waiting_max, missed=box.missed)
                return [] if box.closed else None
            self._blocking -= box.blocks and not box.closed
            count = min(len(box.messages), box.items_max)
            batch = [box.messages.popleft() for _ in range(count)]
            if not (box.messages or box.closed or box.missed):
                box.something = Ack()
            wake = self._go_on()
        _wake(wake)
        return batch

    def _left(self, box: _Box[M]) -> None:
        with self._lock:
            self._boxes = [other for other in self._boxes if other is not box]
            self._blocking -= box.blocks and not box.closed
            box.closed = True
            wake = [box.something, *self._go_on()]
        _wake(wake)


def _wake(acks: list[Ack[None]]) -> None:
    resolve_all([(ack, None, None) for ack in acks])


def _check_no_loop(verb: str) -> None:
    if in_event_loop():
        raise UsageError(
            f"{verb}_blocking was called on an event loop", why="it would block the loop", fix=f"await {verb}(…)"
        )
