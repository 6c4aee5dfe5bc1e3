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
from collections.abc import Callable, Iterable
from functools import partial
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

    def moved(self, claim: Claim, again: Callable[[Ending], None]) -> None:
        """The state that this attempt writes to has moved on: make its ending anew and call `again` with it."""

    def settled(self, claim: Claim) -> None:
        """The end of this attempt is recorded, or refused for good."""

    def preempt(self, queue: str) -> bool:
        """Ask one attempt of this queue to make room for an urgent task; False if none can."""


class Dispatcher:
    """Implements `store.protocol.Listener` for one process. All methods belong to its event loop."""

    def __init__(
        self,
        store: Store,
        worker: WorkerInfo,
        slots: Slots,
        runner: Runner,
        *,
        on_held: Callable[[int], None],
        claim_ahead: int = 0,
    ) -> None:
        self._store = store
        self._worker = worker
        self._slots = slots
        self._runner = runner
        self._on_held = on_held
        self._claim_ahead = claim_ahead  # of each queue, beyond the slots
        self._loop = asyncio.get_running_loop()
        self._alarm: Alarm[str] = Alarm(Timers(), now_us=store.now_us, on_due=self._fire, loop=self._loop)
        self._attempts: dict[Claim, str] = {}  # that run here: their queue
        self._lent: set[Claim] = set()  # those whose slot is lent
        self._endings: list[Ending] = []
        self._freed: Counter[str] = Counter()
        self._flushing = False
        self._open = False
        self._held_back = False
        self._cancelling = False
        self._pressed: set[str] = set()
        self._look_again = False
        self._has_lost = False
        self._lease_us = 0
        self._has_left = False
        self._recording = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def open(self, *, lease_us: int) -> None:
        """Join the store and start taking work."""
        self._lease_us = lease_us
        await self._store.join(self._worker, self, self._loop, lease_us=lease_us)
        self._open = True
        self._fire([])
        self._order_ahead(self._slots.all_free())
        for queue, n in self._slots.all_free().items():
            self._store.want(queue, n)

    def serve(self, queue: str, slots: int) -> None:
        """Take tasks of one more queue. Harmless when it is served."""
        if self._open and self._slots.add(queue, slots) and self._orders:
            self._order_ahead([queue])
            self._store.want(queue, self._slots.allowed(queue))

    async def close_intake(self) -> None:
        """Stop claiming; what was claimed goes on."""
        self._open = False
        await self._store.unwant()
        await asyncio.sleep(0)  # let a claim that was on its way arrive

    @property
    def _orders(self) -> bool:
        """Whether a slot that is free is ordered for."""
        return self._open and not self._held_back and not self._cancelling

    def hold_back(self, is_held_back: bool) -> None:  # noqa: FBT001 - one switch, two positions
        """Take no further tasks, or take them again; what was claimed goes on."""
        if is_held_back == self._held_back:
            return
        self._held_back = is_held_back
        if is_held_back and not self._cancelling:
            self._cancelling = True
            self._freed.clear()
            self._cancel_order()
        elif not is_held_back:
            self._order_all()

    def scale(self, multiplier: float) -> None:
        """Use this part of the slots from now on; what runs beyond it goes on, and is not replaced when it ends."""
        if self._slots.scale(multiplier) and self._orders:
            self._cancelling = True
            self._freed.clear()
            self._cancel_order()

    def shed(self) -> None:
        """Ask one body of each queue that runs more than it may to make room at its next step, if one can."""
        for queue in self._slots.beyond():
            self._runner.preempt(queue)

    def _cancel_order(self) -> None:
        def cancelled(ack: Ack[None]) -> None:
            call_in(self._loop, self._order_cancelled, ack)

        self._store.unwant().add_done_callback(cancelled)

    def _order_cancelled(self, ack: Ack[None]) -> None:
        if not self._said(ack, "cancelling the order"):
            self._loop.call_later(_RETRY_S, self._cancel_order)
            return
        self._cancelling = False
        self._order_all()

    def _order_all(self) -> None:
        """Order for every slot that is free, after the order was cancelled."""
        if self._orders:
            self._order_ahead(self._slots.all_free())
            for queue, n in self._slots.unordered().items():
                self._store.want(queue, n)

    def _order_ahead(self, queues: Iterable[str]) -> None:
        """Have tasks held beyond the slots. The store keeps them, and tells of each when it begins, for a slot."""
        if self._claim_ahead:
            for queue in queues:
                self._store.want_ahead(queue, self._claim_ahead)

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
            self._attempts[task.claim] = task.queue
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

    def on_pressed(self, queue: str) -> None:
        """An urgent task finds no slot: have one made free."""
        if not self._orders:  # a free slot would not go to it
            return
        if self._slots.extend(queue):
            self._store.want(queue, 1)
        elif self._runner.preempt(queue):
            self._pressed.add(queue)

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

    def ended(self, ending: Ending | None, claim: Claim) -> None:
        """An attempt has ended here; None when the store knows already (cancelled, lost)."""
        if ending is not None:
            self._endings.append(ending)
        else:
            self._has_lost = True
        self.take_back(claim)  # it was given up while it waits, or its OS thread's word of that is still on its way
        queue = self._attempts.pop(claim)
        freed = self._slots.free(queue)
        if self._orders:
            self._freed[queue] += freed
        if queue in self._pressed:  # the slot goes to the urgent task; there may be a second one
            self._pressed.discard(queue)
            self._look_again = True
        self._flush_soon()

    def lend(self, claim: Claim) -> None:
        """A body starts to wait for another task: its slot is free meanwhile. One that was given up has none."""
        queue = self._attempts.get(claim)
        if queue is None:
            return
        self._lent.add(claim)
        if self._slots.lend(queue) and self._orders:
            self._store.want(queue, 1)

    def take_back(self, claim: Claim) -> None:
        """A body goes on after waiting. Harmless when its slot is not lent."""
        if claim in self._lent:
            self._lent.discard(claim)
            self._slots.take_back(self._attempts[claim])

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Record the ends of this turn of the loop, and raise the order by the slots they freed."""
        self._flushing = False
        endings, self._endings = self._endings, []
        freed, self._freed = self._freed, Counter()
        look_again, self._look_again = self._look_again, False
        if self._has_lost:
            self._has_lost = False
            self._show_alive()
        self._record(endings, freed if self._orders else Counter(), look_again=look_again)

    def _record(self, endings: list[Ending], freed: Counter[str], *, look_again: bool) -> None:
        if not endings:
            for queue, n in freed.items():
                self._store.want(queue, n)
            if look_again:
                self._store.look()
            self._note_held()
            return
        self._recording += 1
        self._store.finish(endings, want=+freed).call_when_done(
            self._loop, partial(self._recorded, endings, look_again)
        )

    def _recorded(self, endings: list[Ending], look_again: bool, ack: Ack[list[bool | None]]) -> None:  # noqa: FBT001 - by partial
        self._recording -= 1
        try:
            accepted = ack.wait()
        except StoreError as error:
            _log.error("recording %d ended attempts failed, next try in %g s: %s", len(endings), _RETRY_S, error)
            self._recording += 1
            self._loop.call_later(_RETRY_S, self._record_again, endings, look_again)
        else:
            for ending, ok in zip(endings, accepted, strict=True):
                if ok is None:  # still held, and so still counted
                    self._recording += 1
                    self._runner.moved(ending.claim, self._again)
                    continue
                self._runner.settled(ending.claim)
                if not ok:
                    _log.warning(
                        "attempt %d of task %d was taken back meanwhile; its end was refused",
                        ending.claim.attempt,
                        ending.claim.task_id,
                    )
            if False in accepted:
                self._show_alive()
            if look_again:  # now that the slots are given: an urgent task that got none is told of again
                self._store.look()
        self._note_held()

    def _show_alive(self) -> None:
        """Attempts were taken from us: if that is because we were taken for dead, nobody rings for us until we beat."""

        def beaten(ack: Ack[list[Claim]]) -> None:
            call_in(self._loop, self._shown, ack)

        if not self._has_left:
            self._store.heartbeat(self._worker.id, self._lease_us).add_done_callback(beaten)

    def _shown(self, ack: Ack[list[Claim]]) -> None:
        if not self._said(ack, "showing that this worker lives"):
            self._loop.call_later(_RETRY_S, self._show_alive)
        elif not self._has_left:
            self._store.look()  # for what others were rung, and we were not
            self._fire([])

    def _record_again(self, endings: list[Ending], look_again: bool) -> None:  # noqa: FBT001 - by call_later
        self._recording -= 1
        self._record(endings, Counter(), look_again=look_again)  # the order was raised by the first try

    def _again(self, ending: Ending) -> None:
        """An ending was made anew; its slot is free since the first one."""
        self._recording -= 1
        self._endings.append(ending)
        self._flush_soon()

    def _note_held(self) -> None:
        held = self._slots.held
        self._on_held(held + self._recording)
        if held or self._recording or self._flushing:
            self._idle.clear()
        else:
            self._idle.set()
