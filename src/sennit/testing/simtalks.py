"""Simulated conversations: threads with turns and state, questions with a person, bells, writers from outside.

    workers ─ bodies that update, save, ask and wait for bells ─┐
    person  ─ answers late, twice, with an old version, or not  ─┼─► one MemoryStore, audited as in every fleet
    outside ─ updates the same threads                          ─┘

All of them are killed and frozen. In the end every thread remembers exactly what succeeded, was saved or was acknowledged.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final, Unpack

import msgspec

from sennit.errors import AskClosed, AskStale, ConcurrentModificationError, StoreError
from sennit.model.admission import Bounds
from sennit.model.lifecycle import State
from sennit.model.thread import Answer, AskView, Decision, OnBusy
from sennit.store.memory import MemoryStore
from sennit.submit.handle import Handle
from sennit.submit.options import SubmitOptions
from sennit.testing.simaudit import Planned
from sennit.testing.simbodies import QUEUES, call
from sennit.testing.simchaos import POLICIES, Chaos
from sennit.testing.simfleet import Fleet, Meddle, Shape, steady_us
from sennit.testing.simloop import SimLoop
from sennit.testing.simstore import SlowStore
from sennit.testing.simtalk import BELLS, SHARED, draw_talk, tags_of
from sennit.testing.simtalkbooks import bump
from sennit.threads.chains import Chains
from sennit.threads.state import Home
from sennit.threads.thread import Thread

__all__ = ["converse"]

THREADS: Final = ("talk 0", "talk 0", "talk 1", "talk 2", None)
ON_BUSY: Final[tuple[OnBusy, ...]] = ("enqueue",) * 7 + ("reject", "interrupt", "rollback")
BOUNDS: Final = (0, 0, 1, 2)
ALL_VERSIONS: Final = 1000
MOMENTS: Final = 15
"""So often somebody who wants to roll back looks whether there is something to take back."""
PERSON, OUTSIDE = "person", "outside"
STATE_BYTES_MAX: Final = 1_000_000


async def converse(
    random: Random, loop: SimLoop, *, truth: MemoryStore | None = None, meddle: Meddle | None = None
) -> Counter[str]:
    """Live through one fleet of conversations; return how often what was seen.

    Args:
        truth: the shared store, by default a sound one.
        meddle: see `Fleet`.

    Raises:
        BrokenPromise: see `simtalkbooks` and `simturns`.
    """
    shape = Shape.drawn(random)
    bounds = Bounds(threads_max=random.choice(BOUNDS), state_versions=random.choice((1, 3, *(ALL_VERSIONS,) * 4)))
    fleet = Fleet(random, loop, shape, truth=truth or MemoryStore(now_us=steady_us(loop), bounds=bounds), meddle=meddle)
    for name in fleet.names:
        fleet.start(name)
    for name in (*fleet.names, PERSON, OUTSIDE):
        loop.crash_points(name, shape.crash_probability)
    # With few versions a rollback may find its data dropped and take the oldest there is: the books do not follow that.
    town = _Town(fleet, random, rolls_back=bounds.state_versions == ALL_VERSIONS)
    await town.wake()
    for _ in range(random.randint(8, 26)):
        await town.next()
    await town.end()
    return fleet.audit.seen


class _Town(Chaos):
    """What happens to conversations."""

    def __init__(self, fleet: Fleet, random: Random, *, rolls_back: bool) -> None:
        more: dict[Callable[[], Awaitable[None]], int] = {
            self.wake: 2,
            self._ring: 2,
            self._kill_visitor: 1,
            self._freeze_visitor: 1,
        }
        if rolls_back:
            more[self._roll_back] = 4
        super().__init__(fleet, random, more)
        self._bell_n = self._tag_n = 0
        self._is_over = False
        self._on_busy = ON_BUSY if rolls_back else ON_BUSY[:-1]

    async def end(self) -> None:
        """Let the person answer everything and the bells ring until all has ended."""
        self._is_over = True
        await self._fleet.calm()
        for name in (PERSON, OUTSIDE):
            self._fleet.loop.crash_points(name, 0.0)
            self._thaw(name)
        await self.wake()
        self._fleet.nudge = self._ring_all
        await self._fleet.settle()

    async def wake(self) -> None:
        """Start the person and the writer from outside, unless they live."""
        self._fleet.visit(PERSON, self._be_person)
        if not self._is_over:
            self._fleet.visit(OUTSIDE, self._write)

    # ------------------------------------------------------------ handing in

    async def _roll_back(self) -> None:
        """Interrupt a conversation in the middle of something, and take back what it has saved."""
        saved: list[str] = []
        for _ in range(MOMENTS):
            saved = saved or self._at_stake()
            await asyncio.sleep(0.0 if saved else 0.2)
        if saved:
            handle, _ = self._submit_one(thread_id=self._random.choice(saved), on_busy="rollback")
            try:
                await handle.stored()
            except StoreError:  # the disk was full
                self._handles.remove(handle)
                del self._fleet.audit.plans[handle.id]

    def _at_stake(self) -> list[str]:
        """Return the threads with an open task that has saved something."""
        truth = self._fleet.truth
        return [
            view.thread_id
            for view in truth.tasks(states=[State.SUSPENDED, State.SCHEDULED, State.RUNNING], limit=10**6).wait()
            if view.thread_id is not None
            if any(v.task_id == view.id for v in truth.state_history(view.thread_id, limit=10**6).wait())
        ]

    def _submit_one(self, **more: Unpack[SubmitOptions]) -> tuple[Handle[Any], int]:
        random, audit = self._random, self._fleet.audit
        moves, policy = draw_talk(random), random.choice(POLICIES)
        parents = random.sample(self._handles, min(len(self._handles), random.choice((0, 0, 0, 1))))
        options = SubmitOptions(
            queue=random.choice(QUEUES),
            on_parent_failed=policy,
            priority=random.choice(("low", "normal", "high")),
            delay_s=random.choice((0, 0, 0, 2.5)),
            thread_id=random.choice(THREADS),
            on_busy=random.choice(self._on_busy),
        )
        (handle,) = self._fleet.client.submit_calls(
            [call(moves, inputs=parents, is_sync=random.random() < 0.2, **(options | more))]
        )
        audit.plans[handle.id] = Planned(tuple(parent.ref for parent in parents), policy, 0)
        audit.states.planned[handle.id] = tags_of(handle.id, moves)
        self._handles.append(handle)
        return handle, handle.id

    # ------------------------------------------------------------ a person

    async def _be_person(self, store: SlowStore) -> None:
        """Answer what is in the inbox, now or later."""
        known: set[tuple[int, int]] = set()
        thoughts: set[asyncio.Task[None]] = set()
        seen = 0
        while True:
            for view in await self._open(store):
                if (view.id, view.version) not in known:
                    known.add((view.id, view.version))
                    thoughts.add(asyncio.get_running_loop().create_task(self._think(store, view), name="a thought"))
            seen = await store.watch_inbox(seen)

    async def _open(self, store: SlowStore) -> list[AskView]:
        while True:
            try:
                return await store.asks(limit=10**6)
            except StoreError:  # the disk is full: look again
                continue

    async def _think(self, store: SlowStore, view: AskView) -> None:
        """Decide one question after a while, perhaps twice; some that expire are let go."""
        random = self._random
        if view.spec.expires_us and random.random() < 0.4:
            return
        await asyncio.sleep(random.choice((0.0, 1.0, 6.0)) * random.random())
        versions = random.choice(([None], [view.version], [view.version] * 2, [view.version - 1, None]))
        for version in versions:  # the first of the last is stale
            value = msgspec.Raw(str(random.randint(0, 99)).encode())
            answer = (
                Answer(state="denied", by=PERSON) if random.random() < 0.2 else Answer(state="answered", value=value)
            )
            await self._say(store, Decision(ask_id=view.id, answer=answer, version=version))

    async def _say(self, store: SlowStore, decision: Decision) -> None:
        while True:
            try:
                await store.answer([decision])
            except StoreError:  # the disk is full: say it again
                continue
            except (AskClosed, AskStale):
                return
            else:
                return

    # ------------------------------------------------------------ others

    async def _write(self, store: SlowStore) -> None:
        """Update threads from outside, some by an operation that is done twice."""
        home = Home(store, Chains(store), STATE_BYTES_MAX, chance=Random(self._random.random()))
        while not self._is_over:
            await asyncio.sleep(self._random.random())
            self._tag_n += 1
            tag = f"out {self._tag_n}"
            thread: Thread[dict[str, Any]] = Thread(lambda: home, self._random.choice((SHARED, "talk 0")), dict)
            operation_id, times = self._random.choice(((None, 1), (tag, 2)))
            for _ in range(times):
                try:
                    await thread.update(bump(tag), operation_id=operation_id)
                except (StoreError, ConcurrentModificationError):  # the disk was full
                    continue
                self._fleet.audit.states.acknowledged(tag)

    async def _ring(self) -> None:
        self._bell_n += 1
        try:
            await self._fleet.store.signal("bell", self._random.choice(BELLS), str(self._bell_n).encode())
        except StoreError:  # the disk was full: nothing rang
            return

    def _ring_all(self) -> None:
        for bell in BELLS:
            if any(ask.state == "open" and ask.spec.event_key == bell for ask in self._fleet.audit.asks.all()):
                self._bell_n += 1
                self._fleet.store.signal("bell", bell, str(self._bell_n).encode())

    async def _kill_visitor(self) -> None:
        name = self._random.choice((PERSON, OUTSIDE))
        if self._fleet.loop.is_alive(name):
            self._fleet.loop.kill(name)

    async def _freeze_visitor(self) -> None:
        name, loop = self._random.choice((PERSON, OUTSIDE)), self._fleet.loop
        if loop.is_alive(name):
            loop.freeze(name)
            loop.call_later(self._random.uniform(0.2, 10), self._thaw, name)
