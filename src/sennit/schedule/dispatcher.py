"""The dispatcher: keeps the store's standing order equal to the free slots, and hands over what was claimed.

    store ──on_claimed──► start(task) ──► … body … ──► ended(ending) ──► store.finish(endings, want=freed slots)
      ▲                                                                        │
      └──────────────── one transaction records the ends and claims the next ──┘

It never asks "is there something?": it tells the store how much it can take, and is called. Ends of one turn of the
event loop are recorded together, which is what makes one fsync serve a hundred tasks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from sennit.errors import StoreError
from sennit.model.task import Claim, Claimed, Ending, WorkerInfo
from sennit.schedule.slots import Slots
from sennit.schedule.timers import Alarm, Timers
from sennit.store.protocol import Store
from sennit.sync.ack import Ack, call_in

_log = logging.getLogger("sennit")

# After the store could not take an ending (disk full, locked): how long until it is tried again. The lease decides
# how often; by then the attempt is either recorded or refused.
_RETRY_S = 1.0


class Runner(Protocol):
    """Who runs what was claimed; `execute.Worker`, handed in by the runtime."""

    def start(self, task: Claimed) -> None:
        """Run an attempt; call `Dispatcher.ended` with how it ended."""

    def stop(self, claims: list[Claim], reason: str) -> None:
        """These attempts must stop; they are not ours any more."""


class Dispatcher:
    """Implements `store.protocol.Listener` for one process. All methods belong to its event loop."""

    def __init__(
        self, store: Store, worker: WorkerInfo, slots: Slots, runner: Runner, *, on_held: Callable[[int], None]
    ) -> None:
        self._store = store
        self._worker = worker
        self._slots = slots
        self._runner = runner
        self._on_held = on_held
        self._loop = asyncio.get_running_loop()
        self._alarm: Alarm[str] = Alarm(Timers(), now_us=store.now_us, on_due=self._fire, loop=self._loop)
        self._endings: list[Ending] = []
        self._freed: Counter[str] = Counter()
        self._flushing = False
        self._open = False
        self._has_left = False
        self._recording = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def open(self, *, lease_us: int) -> None:
        """Join the store and start taking work."""
        await self._store.join(self._worker, self, self._loop, lease_us=lease_us)
        self._open = True
        self._fire([])
        for queue, n in self._slots.all_free().items():
            self._store.want(queue, n)

    def serve(self, queue: str, slots: int) -> None:
        """Take tasks of one more queue. Harmless when it is served."""
        if self._open and self._slots.add(queue, slots):
            self._store.want(queue, slots)

    async def close_intake(self) -> None:
        """Stop claiming; what was claimed goes on."""
        self._open = False
        await self._store.unwant()
        await asyncio.sleep(0)  # let a claim that was on its way arrive

    async def wait_idle(self) -> None:
        """Wait until nothing is held and every end is recorded."""
        await self._idle.wait()

    async def leave(self) -> None:
        """Leave the store. What is still held will be rescued."""
        self._has_left = True
        self._alarm.close()
        await self._store.leave()

    # ------------------------------------------------------------ what the store tells

    def on_claimed(self, tasks: list[Claimed]) -> None:
        """Hand over what the standing order brought."""
        for task in tasks:
            self._slots.hold(task.queue)
        self._note_held()
        for task in tasks:
            self._runner.start(task)

    def on_stop(self, claims: list[Claim]) -> None:
        """Pass on that attempts were stopped from outside."""
        self._runner.stop(claims, "stopped")

    def on_due(self, due_us: int) -> None:
        """Arm the one timer for the earliest known deadline."""
        armed = self._alarm.armed_us
        if not self._has_left and (armed is None or due_us < armed):
            self._alarm.set("due", due_us)

    def on_death(self, worker_id: int) -> None:
        """A process of this host died: take back what it held, now; then see what it would have been woken for."""
        rescued = self._store.rescue(worker_id)

        def said(ack: Ack[int]) -> None:
            self._said(ack, f"the rescue of worker {worker_id}")

        rescued.add_done_callback(said)
        self._fire([])

    def _fire(self, _due: list[str]) -> None:
        """Do what is due; learn when the next is."""

        def fired(ack: Ack[int | None]) -> None:
            soon_us = self._store.now_us() + int(_RETRY_S * 1_000_000)  # without it, nothing would ever be due again
            next_us = ack.wait() if self._said(ack, "firing timers") else soon_us
            if next_us is not None:
                call_in(self._loop, self.on_due, next_us)

        self._store.fire().add_done_callback(fired)

    def _said(self, ack: Ack[Any], what: str) -> bool:
        """True if it worked; else the log has it. The row is still there, and the next look finds it."""
        try:
            ack.wait()
        except StoreError as error:
            _log.error("%s failed: %s", what, error)
            return False
        return True

    # ------------------------------------------------------------ what the runner tells

    def ended(self, ending: Ending | None, queue: str) -> None:
        """An attempt has ended here; None when the store knows already (cancelled, lost)."""
        if ending is not None:
            self._endings.append(ending)
        freed = self._slots.free(queue)
        if self._open:
            self._freed[queue] += freed
        self._flush_soon()

    def lend(self, queue: str) -> None:
        """A body starts to wait for another task: its slot is free meanwhile."""
        if self._slots.lend(queue) and self._open:
            self._store.want(queue, 1)

    def take_back(self, queue: str) -> None:
        """A body goes on after waiting."""
        self._slots.take_back(queue)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Record the ends of this turn of the loop, and raise the order by the slots they freed."""
        self._flushing = False
        endings, self._endings = self._endings, []
        freed, self._freed = self._freed, Counter()
        self._record(endings, freed if self._open else Counter())

    def _record(self, endings: list[Ending], freed: Counter[str]) -> None:
        if not endings:
            for queue, n in freed.items():
                self._store.want(queue, n)
            self._note_held()
            return
        self._recording += 1

        def recorded(ack: Ack[list[bool]]) -> None:
            call_in(self._loop, self._recorded, ack, endings)

        self._store.finish(endings, want=+freed).add_done_callback(recorded)

    def _recorded(self, ack: Ack[list[bool]], endings: list[Ending]) -> None:
        self._recording -= 1
        try:
            accepted = ack.wait()
        except StoreError as error:
            _log.error("recording %d ended attempts failed, next try in %g s: %s", len(endings), _RETRY_S, error)
            self._recording += 1
            self._loop.call_later(_RETRY_S, self._record_again, endings)
        else:
            for ending, ok in zip(endings, accepted, strict=True):
                if not ok:
                    _log.warning(
                        "attempt %d of task %d was taken back meanwhile; its end was refused",
                        ending.claim.attempt,
                        ending.claim.task_id,
                    )
        self._note_held()

    def _record_again(self, endings: list[Ending]) -> None:
        self._recording -= 1
        self._record(endings, Counter())  # the order was raised by the first try

    def _note_held(self) -> None:
        held = self._slots.held
        self._on_held(held + self._recording)
        if held or self._recording or self._flushing:
            self._idle.clear()
        else:
            self._idle.set()
