"""The caretaker: does for calls what a dispatcher does for attempts, where there is none.

    a call of a process that is no worker waits ─► fires what is due, watches the other processes ─► none waits: rests
    a call that does not wait is refused            ─► looks once for processes that are dead
    a worker has permits that are no attempt's  ─► renews its lease                               ─► none left: rests

Where workers are, they fire and rescue too, and the first is enough. Where nobody but callers uses the store, a pause
must end and the permits of a dead process must come back all the same. It is an OS thread with an event loop, made the
first time that it is needed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sennit.errors import StoreError
from sennit.model.task import Claim, WorkerInfo
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.membership import Membership
from sennit.store.moves import look
from sennit.store.peers import Peers
from sennit.sync.ack import Ack, call_in

_log = logging.getLogger("sennit")

_RETRY_S = 1.0
_GLANCE_S = 1.0  # who tries again and again causes no more than one look in this time


class Keeper(Protocol):
    """What it needs of the store."""

    def now_us(self) -> int:
        """Return the store's clock."""

    def fire(self) -> Ack[int | None]:
        """Do all that is due and return when the next is."""

    def rescue(self, worker_id: int) -> Ack[int]:
        """Take back all a dead process held."""

    def heartbeat(self, worker_id: int, lease_us: int) -> Ack[list[Claim]]:
        """Renew the lease."""

    def put(self, operation: Callable[[Connection, Effects], list[WorkerInfo]], /) -> Ack[list[WorkerInfo]]:
        """Queue an operation."""


class Caretaker:
    """What has no underscore is called by the writer's OS thread, but for `close`."""

    def __init__(self, store: Keeper, members: Membership) -> None:
        self._store = store
        self._members = members
        self._peers = Peers(members.folder)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_resting = True  # as its loop sees it
        self._next_beat: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._cares = self._beats = False
        self._next_glance_s = 0.0

    def care(self, *, waits: bool, due_us: int | None, met: Sequence[WorkerInfo]) -> None:
        """A transaction was committed.

        Args:
            waits: a call of this process waits, and it is no worker.
            due_us: a deadline exists then.
            met: processes that have come.
        """
        if self._is_closed or not (waits or self._cares):
            return
        if waits and not self._cares:
            call_in(self._on_duty(), self._wake)
        elif not waits:
            call_in(self._on_duty(), self._rest)
        else:
            if due_us is not None:
                call_in(self._on_duty(), self._arm, due_us)
            if met:
                call_in(self._on_duty(), self._watch, met)
        self._cares = waits

    def beat(self, *, holds: bool) -> None:
        """A transaction was committed; `holds`: this worker has permits, or waits for some, that are no attempt's."""
        if holds != self._beats and not self._is_closed:
            self._beats = holds
            call_in(self._on_duty(), self._beat_later if holds else self._beat_no_more)

    def glance(self) -> None:
        """A call of this process was refused, and did not wait: the dead may hold what it wanted."""
        if not self._is_closed and not self._cares and time.monotonic() >= self._next_glance_s:
            self._next_glance_s = time.monotonic() + _GLANCE_S
            call_in(self._on_duty(), self._glance)

    @property
    def is_awake(self) -> bool:
        """True while it has something to do."""
        return self._cares or self._beats

    def _on_duty(self) -> asyncio.AbstractEventLoop:
        """Return its loop; the first time, start it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="sennit-caretaker", daemon=True)
            self._thread.start()
        return self._loop

    def close(self) -> None:
        """The store is about to be closed: what fails from now on is no news."""
        self._is_closed = True

    def end(self) -> None:
        """After the last transaction: end the OS thread."""
        self._is_closed = True
        if self._loop is None or self._thread is None:
            return
        call_in(self._loop, self._rest)
        call_in(self._loop, self._beat_no_more)
        call_in(self._loop, self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ------------------------------------------------------------ on its loop

    def _wake(self) -> None:
        """What was due or died while nobody here cared is seen to now."""
        loop = asyncio.get_running_loop()
        self._is_resting = False
        self._store.put(self._others).call_when_done(loop, self._know)
        self._fire()

    def _others(self, connection: Connection, _: Effects) -> list[WorkerInfo]:
        """Return all other processes that have a row, the dead too. In a transaction."""
        return [worker for worker in look.workers(connection) if worker.id not in self._members.ids]

    def _glance(self) -> None:
        self._store.put(self._dead).call_when_done(asyncio.get_running_loop(), self._take_back)

    def _dead(self, connection: Connection, effects: Effects) -> list[WorkerInfo]:
        return self._peers.dead(self._others(connection, effects))

    def _take_back(self, ack: Ack[list[WorkerInfo]]) -> None:
        if self._said(ack, "looking for dead processes"):
            for worker in ack.wait():
                self._rescue(worker.id)

    def _know(self, ack: Ack[list[WorkerInfo]]) -> None:
        if self._said(ack, "looking for other processes"):
            self._watch(ack.wait())

    def _watch(self, workers: Sequence[WorkerInfo]) -> None:
        if not self._is_resting:
            self._peers.watch(workers, self._on_death, asyncio.get_running_loop())

    def _on_death(self, worker_id: int) -> None:
        self._rescue(worker_id)
        self._fire()

    def _rescue(self, worker_id: int) -> None:
        rescued = self._store.rescue(worker_id)
        rescued.call_when_done(
            asyncio.get_running_loop(), lambda ack: self._said(ack, f"the rescue of process {worker_id}")
        )

    def _fire(self) -> None:
        self._timer = None
        self._store.fire().call_when_done(asyncio.get_running_loop(), self._fired)

    def _fired(self, ack: Ack[int | None]) -> None:
        soon_us = self._store.now_us() + int(_RETRY_S * 1_000_000)  # without it, nothing would ever be due again
        next_us = ack.wait() if self._said(ack, "firing timers") else soon_us
        if next_us is not None and not self._is_resting:
            self._arm(next_us)

    def _arm(self, due_us: int) -> None:
        loop = asyncio.get_running_loop()
        at_s = loop.time() + max(0, due_us - self._store.now_us()) / 1_000_000
        if self._timer is None or at_s < self._timer.when():
            self._disarm()
            self._timer = loop.call_at(at_s, self._fire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rest(self) -> None:
        self._is_resting = True
        self._disarm()
        self._peers.close()

    def _beat_later(self) -> None:
        self._beat_no_more()
        after_s = self._members.lease_us / 3 / 1_000_000
        self._next_beat = asyncio.get_running_loop().call_later(after_s, self._beat)

    def _beat(self) -> None:
        renewed = self._store.heartbeat(self._members.id, self._members.lease_us)
        renewed.call_when_done(asyncio.get_running_loop(), lambda ack: self._said(ack, "renewing the lease"))
        self._beat_later()

    def _beat_no_more(self) -> None:
        if self._next_beat is not None:
            self._next_beat.cancel()
            self._next_beat = None

    def _said(self, ack: Ack[Any], what: str) -> bool:
        """True if it worked; else the log has it. The row is still there, and the next look finds it."""
        try:
            ack.wait()
        except StoreError as error:
            if not self._is_closed:
                _log.error("%s failed: %s", what, error)
            return False
        return True
