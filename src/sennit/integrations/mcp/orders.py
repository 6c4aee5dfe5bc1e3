"""The standing order of this process: always as large as what is waited for, and no larger.

a call waits ─► want(queue, 1)            it is served, or it gives up
a call gives up ─► unwant() ─► want(…)    an order can only be cancelled as a whole
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sennit.errors import StoreError
from sennit.model.task import Claimed, Ending
from sennit.store.protocol import Store
from sennit.sync.ack import Ack

if TYPE_CHECKING:
    from sennit.integrations.mcp.clients import Client, Held

_log = logging.getLogger("sennit.mcp")

# After the store could not do what must be done (disk full, locked): how long until it is tried again, as the dispatcher.
RETRY_S: Final = 1.0


@dataclass(eq=False, slots=True)
class Waiter:
    """One call that waits for a task of some queues."""

    client: Client
    queues: Sequence[str]
    came: asyncio.Future[Held]


@dataclass(slots=True)
class Service:
    """A queue that this process serves itself, beside what clients take: `start` says how the attempt ends."""

    queue: str
    orders: int
    start: Callable[[Claimed], Ending]


class Orders:
    """All methods belong to one event loop.

    Args:
        own: what this process takes for itself: queue → how many at once.
    """

    def __init__(self, store: Store, own: dict[str, int]) -> None:
        self._store = store
        self._own = own
        self._loop = asyncio.get_running_loop()
        self._waiters: dict[Waiter, None] = {}  # in the order in which they came
        self._ordered: Counter[str] = Counter()
        self._is_open = self._cancelling = False

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return len(self._waiters)

    @property
    def ordered(self) -> dict[str, int]:
        """What is ordered and has not come, by queue."""
        return {queue: n for queue, n in self._ordered.items() if n}

    def open(self) -> None:
        """Order from now on."""
        self._is_open = True
        self._adjust()

    async def close(self) -> None:
        """Cancel the order, and tell those who wait; what was on its way has come then."""
        self._is_open = False
        for waiter in self._waiters:
            waiter.came.cancel()
        self._waiters.clear()
        await self._store.unwant()
        await asyncio.sleep(0)  # let a claim that was on its way arrive

    def enter(self, waiter: Waiter) -> None:
        """A call begins to wait."""
        self._waiters[waiter] = None
        self._adjust()

    def leave(self, waiter: Waiter) -> None:
        """It waits no longer, served or not."""
        self._waiters.pop(waiter, None)
        self._adjust()

    def came(self, queue: str) -> Waiter | None:
        """A task of the order has come: return who waits for it, None when nobody does any more."""
        self.served(queue)
        for waiter in self._waiters:
            if queue in waiter.queues and not waiter.came.done():
                del self._waiters[waiter]
                return waiter
        return None

    def served(self, queue: str) -> None:
        """A task of the order has come."""
        self._ordered[queue] -= self._ordered[queue] > 0

    def renew(self) -> None:
        """Order for what still waits, after tasks have come."""
        self._adjust()

    # ------------------------------------------------------------ inside

    def _adjust(self) -> None:
        if not self._is_open or self._cancelling:
            return
        wanted = Counter(queue for waiter in self._waiters for queue in waiter.queues)
        wanted.update(self._own)
        if any(n > wanted[queue] for queue, n in self._ordered.items()):
            self._cancelling = True
            self._loop.call_soon(self._cancel)  # others may stop waiting in this very turn
            return
        for queue, n in wanted.items():
            if n > self._ordered[queue]:
                self._store.want(queue, n - self._ordered[queue])
                self._ordered[queue] = n

    def _cancel(self) -> None:
        if self._is_open:
            self._store.unwant().call_when_done(self._loop, self._cancelled)

    def _cancelled(self, ack: Ack[None]) -> None:
        try:
            ack.wait()
        except StoreError as error:
            _log.error("cancelling the order failed, next try in %g s: %s", RETRY_S, error)
            self._loop.call_later(RETRY_S, self._cancel)
            return
        self._cancelling = False
        self._ordered.clear()
        self._adjust()
