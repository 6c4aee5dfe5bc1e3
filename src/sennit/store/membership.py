"""Membership: this process as the others see it.

    join, or the first watch ─► life lock ─► bell and ear ─► row          leave ─► no row          end ─► no lock, no bell

The row says that there is somebody, the lock that it lives, the bell how to reach it. Everything here except `joined`
is touched by the writer's OS thread only; the ear is an OS thread of its own and hands on what it hears.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from sennit.errors import UsageError
from sennit.model.task import Claim, WorkerInfo
from sennit.store.database import Connection
from sennit.store.ears import Ear, Ears
from sennit.store.effects import Effects
from sennit.store.ids import reserve
from sennit.store.liveness import LifeLock
from sennit.store.moves import look, over, time
from sennit.store.peers import Peers, home_of
from sennit.store.protocol import Listener
from sennit.sync.ack import call_in
from sennit.sync.clock import NowUs, boot_id


class Membership:
    """What one process has registered.

    Args:
        folder: of the life locks.
        ears: how processes hear each other.
        on_rung: called with the hints, on the ear's OS thread.
        missed: whether something may be stored that nobody will ring for again.
        now_us: see `Peers`.

    Attributes:
        joined: a worker has joined, or is about to.
        worker: the row that others see, None before and after.
        lease_us: how long its lease lasts; 0 for a client.
        lease_until_us: when it ends, as of the last commit; 0 for a client. Read from any OS thread.
        listener, loop: whom to tell, and where; None unless a worker has joined.
    """

    def __init__(
        self,
        folder: Path,
        ears: Ears,
        *,
        on_rung: Callable[[int], None],
        missed: Callable[[], bool],
        now_us: NowUs | None = None,
    ) -> None:
        self.folder = folder
        self._ears = ears
        self._on_rung = on_rung
        self._missed = missed
        self.joined = False
        self.worker: WorkerInfo | None = None
        self.listener: Listener | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.ids: set[int] = set()  # all that it ever registered with: what it holds may have been given to any
        self._client_id = 0
        self.peers = Peers(self.folder, now_us=now_us)
        self._registering = False
        self._is_back = False
        self.lease_us = 0
        self._lease_until_us = 0
        self.lease_until_us = 0
        self._life: LifeLock | None = None
        self._ear: Ear | None = None
        self._leaves: tuple[WorkerInfo, Listener | None, asyncio.AbstractEventLoop | None] | None = None
        self._met: list[WorkerInfo] = []

    @property
    def id(self) -> int:
        """This process's id in the store; 0 before it has registered."""
        return 0 if self.worker is None else self.worker.id

    @property
    def is_worker(self) -> bool:
        """Whether this process claims tasks."""
        return self.worker is not None and self.worker.role == "worker"

    # ------------------------------------------------------------ coming and going

    def join(
        self,
        connection: Connection,
        effects: Effects,
        worker: WorkerInfo,
        listener: Listener,
        loop: asyncio.AbstractEventLoop,
        *,
        lease_us: int,
    ) -> None:
        """Register this process as a worker.

        Raises:
            UsageError: it has joined already.
        """
        if self.is_worker:
            raise UsageError("this store object has joined already", fix="open a second store for a second worker")
        try:
            self._register(connection, effects, worker, lease_us)
        except BaseException:
            self.joined = False
            raise
        self.joined = True
        self.listener, self.loop = listener, loop
        self.meet(connection)

    def be_known(self, connection: Connection, effects: Effects) -> None:
        """Have a row, as a client if no worker has joined: who waits for results needs a bell that workers can ring."""
        if self.worker is not None:
            self.register_again(connection, effects, self.worker.id, self.lease_us)
            return
        self._client_id = self._client_id or reserve(connection, 1)[0]
        client = WorkerInfo(
            id=self._client_id, pid=os.getpid(), host=socket.gethostname(), boot_id=boot_id(), role="client"
        )
        self._register(connection, effects, client, 0)

    def _register(self, connection: Connection, effects: Effects, worker: WorkerInfo, lease_us: int) -> None:
        """Take the life lock, open the bell, write the row. A client that becomes a worker gives up its first row."""
        if self.worker is not None:
            over.move(connection, old_id=self.worker.id, new_id=worker.id)
            time.leave(connection, effects, self.worker.id)
        elif self._life is not None:
            self._life.release()  # of a registration that is over, or was rolled back
            self._life = None
            for old_id in self.ids - {worker.id}:  # calls of this process go on; its attempts do not
                over.move(connection, old_id=old_id, new_id=worker.id)
                time.leave(connection, effects, old_id)
        self.folder.mkdir(exist_ok=True)
        home = home_of(self.folder)
        life = LifeLock.hold(self.folder, str(worker.id))
        try:
            if self._ear is None:
                self._ear = self._ears.listen(str(worker.id), self._on_rung, self._missed)
            worker = msgspec.structs.replace(worker, bell=self._ear.address, home=home, started_us=effects.now_us)
            time.join(connection, effects, worker, lease_us)
        except BaseException:
            life.release()
            raise
        if self._life is not None:
            self._life.release()
        self._life, self.worker, self._registering = life, worker, True
        self.ids.add(worker.id)
        self.lease_us = lease_us
        self._lease_until_us = effects.now_us + lease_us

    def leave(self, connection: Connection, effects: Effects) -> None:
        """Unregister."""
        if self.worker is not None:
            time.leave(connection, effects, self.worker.id)
        if self.loop is not None:
            call_in(self.loop, self.peers.close)
        if self.worker is not None:
            self._leaves = self.worker, self.listener, self.loop
        self.worker = self.listener = self.loop = None

    def after_commit(self) -> tuple[list[WorkerInfo], bool]:
        """Return whom this transaction has met, and whether we were taken for dead: then nobody has rung us for a while."""
        met, self._met = self._met, []
        is_back, self._is_back = self._is_back, False
        self._registering, self._leaves = False, None
        self.lease_until_us = self._lease_until_us if self.is_worker else 0
        return met, is_back

    def after_rollback(self) -> None:
        """Forget what this transaction has registered and whom it has met."""
        self._lease_until_us = self.lease_until_us
        if self._registering:
            self.worker = self.listener = self.loop = None
            self.joined = False
        if self._leaves is not None:  # its row is still there, and the transaction may be run once more
            (self.worker, self.listener, self.loop), self._leaves = self._leaves, None
        self._registering = self._is_back = False
        self._met = []
        if self._ear is not None:
            self._ear.wake()  # it looks again soon, if nobody else writes before

    def end(self) -> None:
        """After the last transaction: give up bell and life lock."""
        if self._life is not None:
            self._life.release()
            self._life = None
        if self._ear is not None:
            ear, self._ear = self._ear, None
            ear.close()
        if self.loop is not None:  # leaving failed
            call_in(self.loop, self.peers.close)

    def describe(self, connection: Connection, worker: WorkerInfo) -> None:
        """Replace what others see of the worker that has joined here; its bell, its start and how it listens stay."""
        mine = self.worker
        if mine is not None and mine.id == worker.id:
            self.worker = msgspec.structs.replace(
                worker, bell=mine.bell, home=mine.home, started_us=mine.started_us, listening=mine.listening
            )
            time.describe(connection, self.worker)

    def listens(self, connection: Connection, *, listening: bool) -> None:
        """Tell others whether notifications arrive here."""
        if self.worker is not None and self.worker.listening != listening:
            self.worker = msgspec.structs.replace(self.worker, listening=listening)
            time.describe(connection, self.worker)

    def may_run(self, route: str) -> bool:
        """Whether this process claims tasks of a route."""
        return self.worker is not None and self.worker.may_run(route)

    # ------------------------------------------------------------ the lease

    def has_claimed(self, connection: Connection, effects: Effects, *, leased: bool) -> None:
        """See to it that what was claimed in this transaction has a lease: it was idle, and did not beat."""
        worker = self.worker
        if worker is None:
            return
        if not leased:
            self._join_again(connection, effects, worker, self.lease_us)
        elif effects.now_us > self._lease_until_us - self.lease_us // 2:
            time.renew(connection, effects, worker.id, self.lease_us)
            self._lease_until_us = effects.now_us + self.lease_us
            effects.renewed = True

    def was_renewed(self, now_us: int) -> None:
        """The lease was renewed at a claim."""
        self._lease_until_us = now_us + self.lease_us

    def register_again(self, connection: Connection, effects: Effects, worker_id: int, lease_us: int) -> None:
        """Write our own row again if we were taken for dead: what we claim from now on must have a lease."""
        worker = self.worker
        if worker is not None and worker.id == worker_id and not time.registered(connection, worker_id):
            self._join_again(connection, effects, worker, lease_us)

    def _join_again(self, connection: Connection, effects: Effects, worker: WorkerInfo, lease_us: int) -> None:
        time.join(connection, effects, worker, lease_us)
        self._lease_until_us = effects.now_us + lease_us
        effects.renewed = self._is_back = True

    def heartbeat(self, connection: Connection, effects: Effects, worker_id: int, lease_us: int) -> list[Claim]:
        """Renew a lease, also of another; return what is held under it."""
        if not time.renew(connection, effects, worker_id, lease_us):
            self.register_again(connection, effects, worker_id, lease_us)
        if worker_id == self.id:
            self._lease_until_us = effects.now_us + lease_us
        return time.held(connection, worker_id)

    # ------------------------------------------------------------ the others

    def bells(self, connection: Connection) -> list[str]:
        """Return the addresses of all other processes."""
        return list(time.peers(connection, self.id).values())

    def meet(self, connection: Connection) -> None:
        """Take note of all other processes, to watch them."""
        self._met = [w for w in look.workers(connection) if w.id != self.id]
