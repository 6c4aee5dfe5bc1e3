"""The desk: where clients that are no workers of ours take tasks, each on a lease of its own.

    task_claim ─► waiter ─► one standing order ─► on_claimed ─► Held (token, lease) ─► end(…) ─► store.finish
                     │                               └─ nobody waits any more: given back at once
                     └─ nothing in time: the order is cancelled

    Held ─ nothing heard for claim_lease_s ─┐
         ─ its client has gone ─────────────┼─► given back: no failure, no crash, and the token is stale
         ─ cancelled, or taken over ────────┘   (then the store says so, and there is nothing to give back)

The process is one worker of the store: one lease and one heart for all its claims, as for any other. Beneath it each claim
lives as long as its client says something. All methods belong to one event loop; none of them polls.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from sennit.errors import StoreError
from sennit.execute import overspent
from sennit.integrations.mcp.clients import Client, Held, new_token, stale
from sennit.integrations.mcp.orders import RETRY_S, Orders, Service, Waiter
from sennit.model.provider import Budget
from sennit.model.task import Claim, Claimed, Ending, GivenBack, WorkerInfo
from sennit.schedule.heart import Heart
from sennit.schedule.timers import Alarm, Timers
from sennit.store.protocol import Store
from sennit.sync.ack import Ack, call_in
from sennit.sync.clock import boot_id

_log = logging.getLogger("sennit.mcp")

T = TypeVar("T")


@dataclass(slots=True)
class DeskStatistics:
    """What there is now, and how often what happened."""

    held: int = 0
    waiting: int = 0
    ordered: dict[str, int] = field(default_factory=dict)
    lapsed: int = 0
    surplus: int = 0


class Desk:
    """Implements `store.protocol.Listener`.

    Args:
        queues: those that clients may take from.
        lease_s: how long a client may say nothing about a claim.
        worker_lease_s: of this process; the setting `lease_s`.
        on_end: told of each claim that is not held any more, however that came.
    """

    def __init__(
        self,
        store: Store,
        queues: Sequence[str],
        *,
        lease_s: float,
        worker_lease_s: float,
        slots: int,
        service: Service | None = None,
        on_end: Callable[[Held], None] = lambda _: None,
    ) -> None:
        self.store = store
        self.queues = tuple(queues)
        self.lease_s = lease_s
        self._worker_lease_s = worker_lease_s
        self._service = service
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        orders = {} if service is None else {service.queue: service.orders}
        self._me = WorkerInfo(
            id=store.take_ids(1)[0], pid=os.getpid(), host=socket.gethostname(), boot_id=boot_id(),
            queues=dict.fromkeys(self.queues, slots) | orders,
        )  # fmt: skip
        self._alarm: Alarm[str] = Alarm(Timers(), now_us=store.now_us, on_due=self._fire, loop=self._loop)
        self._heart = Heart(
            store,
            self._me.id,
            lease_s=worker_lease_s,
            on_beat=lambda held: self._hear(self._compare, held),
            on_trouble=lambda error: _log.error("heartbeat: %s", error),
            on_fence=lambda why: _log.error("the lease of this process cannot be renewed: %s", why),
            on_back=lambda: self._hear(self._show_alive),
        )
        self._orders = Orders(store, orders)
        self._held: dict[Claim, Held] = {}
        self._tokens: dict[str, Held] = {}
        self._at_last_beat: frozenset[Claim] = frozenset()
        self._open = False
        self._recording = 0  # endings on their way, also of claims that nobody holds any more
        self._recorded = asyncio.Event()
        self._lapsed = self._surplus = 0

    # ------------------------------------------------------------ opening and closing

    async def open(self) -> None:
        """Join the store."""
        await self.store.join(self._me, self, self._loop, lease_us=int(self._worker_lease_s * 1_000_000))
        self._heart.start()
        self._open = True
        self._fire([])
        self._orders.open()

    async def close(self) -> None:
        """Give back what is held, and leave. Idempotent."""
        if not self._open:
            return
        self._open = False
        try:
            await self._orders.close()
            for held in list(self._held.values()):
                self._give_back(held)
            with suppress(TimeoutError):  # what the store does not take comes back to others by this process's end
                async with asyncio.timeout(self._worker_lease_s):
                    while self._recording:
                        self._recorded.clear()
                        await self._recorded.wait()
            self._alarm.close()
            await self.store.leave()
        finally:
            self._alarm.close()
            await self._loop.run_in_executor(None, self._heart.stop)

    def statistics(self) -> DeskStatistics:
        """Return what there is now."""
        orders = self._orders
        return DeskStatistics(len(self._held), orders.waiting, orders.ordered, self._lapsed, self._surplus)

    # ------------------------------------------------------------ claiming

    async def claim(self, client: Client, queues: Sequence[str], wait_s: float) -> Held | None:
        """Return a claim as soon as there is a task, None if there is none within `wait_s`.

        Raises:
            UsageError: the client holds, or waits for, as many as it may.
            StoreError: the store failed.
        """
        with client.waiting():
            if not wait_s or len(queues) > 1:  # an order in each would bring as many tasks
                for queue in queues:
                    if (held := await self._take(client, queue)) is not None:
                        return held
            return await self._wait(client, queues, wait_s) if wait_s else None

    async def _take(self, client: Client, queue: str) -> Held | None:
        """Claim what is ready now."""
        found = self.store.claim(self._me.id, queue, 1)
        try:
            tasks = await found
        except asyncio.CancelledError:  # it may come all the same
            found.call_when_done(self._loop, self._nobody_takes)
            raise
        if tasks and tasks[0].spent is None:
            return self._hold(client, tasks[0])
        for task in tasks:
            self._overspent(task)
        return None

    def _nobody_takes(self, found: Ack[list[Claimed]]) -> None:
        try:
            tasks = found.wait()
        except StoreError as error:
            _log.error("a claim that nobody waits for any more failed: %s", error)
            return
        self._give_back_all(tasks)

    async def _wait(self, client: Client, queues: Sequence[str], wait_s: float) -> Held | None:
        waiter = Waiter(client, queues, self._loop.create_future())
        self._orders.enter(waiter)
        try:
            async with asyncio.timeout(wait_s):
                return await waiter.came
        except TimeoutError:
            return waiter.came.result() if waiter.came.done() and not waiter.came.cancelled() else None
        except asyncio.CancelledError:  # the client has gone, or does not want it any more
            if waiter.came.done() and not waiter.came.cancelled():
                self._give_back(waiter.came.result())
            raise
        finally:
            self._orders.leave(waiter)

    def _hold(self, client: Client, task: Claimed) -> Held:
        held = Held(task, new_token(task.claim), client)
        self._held[task.claim] = self._tokens[held.token] = held
        client.held.add(held)
        self.touch(held)
        self._note_held()
        return held

    # ------------------------------------------------------------ what is held

    def held(self, token: str) -> Held:
        """Return the claim of a token, and count its lease from now.

        Raises:
            LeaseLost: it is not held here any more.
            UsageError: it is no token.
        """
        held = self._tokens.get(token)
        if held is None or held.is_ending:
            raise stale(token)
        self.touch(held)
        return held

    def touch(self, held: Held) -> None:
        """Count the lease of a claim from now."""
        if held.lapse is not None:
            held.lapse.cancel()
        held.lapse = self._loop.call_later(self.lease_s, self._lapse, held)

    def _lapse(self, held: Held) -> None:
        self._lapsed += 1
        _log.warning("nothing was heard of the claim of task %d for %g s; it is given back", held.task.id, self.lease_s)
        self._give_back(held)

    async def end(self, held: Held, ending: Ending) -> bool:
        """Record how a claim ended; False if the store does not know it as held any more. It is over then, too.

        Raises:
            StoreError: the store failed; the claim is still held.
        """
        held.is_ending = True
        recorded = self._record([ending])
        recorded.call_when_done(self._loop, partial(self._ended, held))
        return bool((await recorded)[0])

    def _ended(self, held: Held, ack: Ack[list[bool | None]]) -> None:
        if self._failed(ack, "recording an ending"):
            held.is_ending = False
            if not self._open or held.client.is_gone:
                self._give_back(held)
            return
        self._drop(held)
        if not ack.wait()[0]:
            self._show_alive()

    def _drop(self, held: Held) -> None:
        """Forget a claim."""
        if self._held.pop(held.claim, None) is None:
            return
        held.is_over = True
        del self._tokens[held.token]
        held.client.held.discard(held)
        if held.lapse is not None:
            held.lapse.cancel()
        self._on_end(held)
        self._note_held()

    def leave(self, client: Client) -> None:
        """A client has gone: give back what it holds. Its calls have ended by themselves."""
        client.is_gone = True
        for held in list(client.held):
            self._give_back(held)

    def _give_back(self, held: Held) -> None:
        if held.is_ending or held.claim not in self._held:
            return
        self._drop(held)
        self._give_back_all([held.task])

    def _give_back_all(self, tasks: Sequence[Claimed]) -> None:
        """Hand tasks back, and try again until the store has taken it; it counts as nothing, and they keep their place."""
        if tasks:
            endings = [GivenBack(task.claim) for task in tasks]
            self._record(endings).call_when_done(self._loop, partial(self._given_back, tasks))

    def _given_back(self, tasks: Sequence[Claimed], ack: Ack[list[bool | None]]) -> None:
        if self._failed(ack, f"giving back {len(tasks)} tasks") and self._open:
            self._loop.call_later(RETRY_S, self._give_back_all, tasks)

    def _record(self, endings: Sequence[Ending]) -> Ack[list[bool | None]]:
        self._recording += 1
        self._note_held()
        ack = self.store.finish(endings)
        ack.call_when_done(self._loop, self._has_recorded)
        return ack

    def _has_recorded(self, _: Ack[list[bool | None]]) -> None:
        self._recording -= 1
        self._recorded.set()
        self._note_held()

    def _note_held(self) -> None:
        self._heart.held(len(self._held) + self._recording)

    # ------------------------------------------------------------ what the store tells

    def on_claimed(self, tasks: list[Claimed]) -> None:
        """Hand over what the standing order brought; give back what nobody waits for any more."""
        surplus: list[Claimed] = []
        for task in tasks:
            waiter = None if task.spent is not None else self._orders.came(task.queue)
            if self._service is not None and task.queue == self._service.queue:
                self._end_own(task, self._service.start(task))
            elif task.spent is not None:
                self._orders.served(task.queue)
                self._overspent(task)
            elif waiter is not None:
                waiter.came.set_result(self._hold(waiter.client, task))
            else:
                surplus.append(task)
        self._surplus += len(surplus)
        self._give_back_all(surplus)
        self._orders.renew()

    def _overspent(self, task: Claimed) -> None:
        """Its budget leaves nothing for it: as a worker does, fail it, ask a person, or raise the budget as one has said."""
        ending = overspent.begin(task)
        if isinstance(ending, Budget):
            self.store.set_budget(ending).call_when_done(self._loop, partial(self._failed, what="raising a budget"))
            ending = GivenBack(task.claim)
        self._end_own(task, ending)

    def _end_own(self, task: Claimed, ending: Ending) -> None:
        def said(ack: Ack[list[bool | None]]) -> None:
            if self._failed(ack, f"ending task {task.id}"):
                self._give_back_all([task])

        self._record([ending]).call_when_done(self._loop, said)

    def on_stop(self, claims: list[Claim]) -> None:
        """These were cancelled, or taken over."""
        for claim in claims:
            if (held := self._held.get(claim)) is not None:
                _log.info("the claim of task %d was stopped", claim.task_id)
                self._drop(held)

    def on_due(self, due_us: int) -> None:
        """Arm the one timer for the earliest known deadline."""
        armed = self._alarm.armed_us
        if self._open and (armed is None or due_us < armed):
            self._alarm.set("due", due_us)

    def on_death(self, worker_id: int) -> None:
        """A process of this host died: take back what it held."""
        self.store.rescue(worker_id).call_when_done(self._loop, partial(self._failed, what="a rescue"))
        self._fire([])

    def on_pressed(self, queue: str) -> None:
        """Nobody here can be asked to make room: what runs is a program of somebody else."""

    def _fire(self, _due: list[str]) -> None:
        """Do what is due; learn when the next is."""

        def fired(ack: Ack[int | None]) -> None:
            soon_us = self.store.now_us() + int(RETRY_S * 1_000_000)
            next_us = soon_us if self._failed(ack, "firing timers") else ack.wait()
            if next_us is not None:
                self.on_due(next_us)

        self.store.fire().call_when_done(self._loop, fired)

    def _show_alive(self) -> None:
        """Claims were taken from us: if that is because we were taken for dead, nobody rings for us until we beat."""

        def beaten(ack: Ack[list[Claim]]) -> None:
            if not self._open:
                return
            if self._failed(ack, "showing that this process lives"):
                self._loop.call_later(RETRY_S, self._show_alive)
                return
            self.store.look()
            self._fire([])

        if self._open:
            beat = self.store.heartbeat(self._me.id, int(self._worker_lease_s * 1_000_000))
            beat.call_when_done(self._loop, beaten)

    def _compare(self, claims: list[Claim]) -> None:
        """Drop what the store does not know as held any more, of what was held at the last beat already."""
        lost = (self._at_last_beat & self._held.keys()) - set(claims)
        self.on_stop([claim for claim in lost if not self._held[claim].is_ending])
        self._at_last_beat = frozenset(self._held)

    def _hear(self, method: Callable[..., None], *args: Any) -> None:
        """From the heart's OS thread."""
        call_in(self._loop, method, *args)

    def _failed(self, ack: Ack[Any], what: str) -> bool:
        """True, and it is in the log, when it failed."""
        try:
            ack.wait()
        except StoreError as error:
            _log.error("%s failed: %s", what, error)
            return True
        return False
