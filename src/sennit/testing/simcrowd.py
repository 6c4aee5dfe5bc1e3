"""Simulated crowds: more is handed in than may wait, the same is asked for twice, and urgent tasks are in a hurry.

    c0, c1: clients that block, are refused or shed others ─► queue a (bound), threads (room), cached calls ─► workers

`crowd` checks who gets in and that nobody is left outside; `hurry` that an urgent task need not wait for long ones.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, Final

from sennit.errors import BrokenPromise, StoreError, SubmitError
from sennit.model.admission import Bounds, OnFull
from sennit.model.lifecycle import State
from sennit.store.memory import MemoryStore
from sennit.submit.client import Client
from sennit.submit.handle import Handle
from sennit.submit.options import SubmitOptions
from sennit.testing.simaudit import Planned
from sennit.testing.simbodies import QUEUES, REGISTRY, Move, call, children_of, draw_moves
from sennit.testing.simchaos import Chaos
from sennit.testing.simfleet import END_S, QUIET_S, SETTINGS, Fleet, Meddle, Shape, steady_us
from sennit.testing.simloop import SimLoop
from sennit.testing.simstore import SlowStore

__all__ = ["crowd", "hurry"]

CLIENTS: Final = ("c0", "c1")
THREADS: Final = (None, None, "talk 0", "talk 1", "talk 2")
ON_FULL: Final[tuple[OnFull, ...]] = ("block", "block", "reject", "shed", "shed")
ON_BUSY: Final = ("enqueue",) * 6 + ("reject", "interrupt")
PRIORITIES: Final = ("low", "normal", "high", "urgent")
ROUNDS_MAX: Final = 200
"""Rounds of `QUIET_S` until everybody is in."""

HURRY_S: Final = 6.0
"""An urgent task starts within this: one step of the others, and the ways to the store and back."""


async def crowd(
    random: Random, loop: SimLoop, *, truth: MemoryStore | None = None, meddle: Meddle | None = None
) -> Counter[str]:
    """Live through one fleet to which too much is handed in; return how often what was seen.

    Args:
        truth: the shared store, by default a sound one.
        meddle: see `Fleet`.

    Raises:
        BrokenPromise: see `simturns`, or somebody stays outside although there is room.
    """
    shape = replace(Shape.drawn(random), schedules=())
    bounds = Bounds(threads_max=random.choice((0, 1, 2)))
    queue_max = random.randint(1, 5)
    fleet = Fleet(
        random,
        loop,
        shape,
        truth=truth or MemoryStore(now_us=steady_us(loop), bounds=bounds),
        meddle=meddle,
        settings=replace(SETTINGS, queue_max=queue_max, admission_timeout_s=END_S),
    )
    for name in fleet.names:
        fleet.start(name)
        loop.crash_points(name, shape.crash_probability)
    queue = _Queue(fleet, random, queue_max)
    for _ in range(random.randint(8, 26)):
        await queue.next()
    await queue.end()
    return fleet.audit.seen


class _Queue(Chaos):
    """What happens in front of a queue."""

    def __init__(self, fleet: Fleet, random: Random, queue_max: int) -> None:
        more: dict[Callable[[], Awaitable[None]], int] = {
            self._come: 8,
            self._invalidate: 1,
            self._kill_client: 1,
            self._freeze_client: 1,
        }
        super().__init__(fleet, random, more)
        self._queue_max = queue_max
        self._lives = 0
        self._outside: dict[str, set[tuple[int, str]]] = {}  # life of a client → tasks that are not in yet: id, queue
        self._life_of: dict[str, str] = {}

    async def end(self) -> None:
        """Wait until everybody is in, and then until all has ended."""
        await self._fleet.calm()
        for name in CLIENTS:
            self._thaw(name)
        for _ in range(ROUNDS_MAX):
            if not self._waiting():
                break
            self._fleet.nudge()
            await self._check_nobody_is_forgotten()
        else:
            raise BrokenPromise(f"tasks {sorted(self._waiting())} are still outside")
        self._forget_the_dead()
        await self._fleet.settle()

    def _forget_the_dead(self) -> None:
        """What a client that died had not heard of may be stored, or not."""
        stored = {view.id for view in self._fleet.truth.tasks(limit=10**6).wait()}
        for task_id, _ in set[tuple[int, str]]().union(*self._outside.values()):
            if task_id not in stored:
                del self._fleet.audit.plans[task_id]

    def _waiting(self) -> set[tuple[int, str]]:
        """Return what clients that live have handed in and is not in yet."""
        alive = [self._life_of[name] for name in CLIENTS if self._fleet.loop.is_alive(name)]
        return set[tuple[int, str]]().union(*(self._outside[life] for life in alive))

    async def _check_nobody_is_forgotten(self) -> None:
        """Check that nobody waits before a queue that has room, and into which nobody else goes."""
        entries = self._fleet.audit.entries
        before, entered = self._waiting(), entries.entered
        had_room = {queue for queue in QUEUES if entries.waiting(queue) < self._queue_max}
        await self._fleet.check_no_slot_is_wasted()
        has_room = {queue for queue in had_room if entries.waiting(queue) < self._queue_max}
        forgotten = sorted(entry for entry in before & self._waiting() if entry[1] in has_room)
        if forgotten and entries.entered == entered:
            raise BrokenPromise(f"tasks {forgotten} wait outside, and there has been room for {QUIET_S} s")

    # ------------------------------------------------------------ who comes

    async def _come(self) -> None:
        """Let a client hand in a few tasks, one after the other or all at once; it waits for them in its own process."""
        name, loop = self._random.choice(CLIENTS), self._fleet.loop
        if not loop.is_alive(name):
            self._lives += 1
            life = self._life_of[name] = f"{name}.{self._lives}"
            self._outside[life] = set()
            self._fleet.visit(name, partial(self._be_client, life))

    async def _be_client(self, life: str, store: SlowStore) -> None:
        client, coming = self._fleet.client_of(lambda: store), set[asyncio.Task[None]]()
        for _ in range(self._random.randint(1, 10)):
            coming.add(asyncio.get_running_loop().create_task(self._hand_in(client, life), name=f"submit of {life}"))
            await asyncio.sleep(self._random.choice((0.0, 0.3)))
        await asyncio.gather(*coming)
        self._fleet.loop.kill(life.partition(".")[0])

    async def _hand_in(self, client: Client, life: str) -> None:
        handle, fresh_id, queue = self._submit_to(client)
        self._outside[life].add((fresh_id, queue))
        try:
            await handle.stored()
        except (StoreError, SubmitError):
            del self._fleet.audit.plans[fresh_id]
        else:
            if handle.id == fresh_id:  # by another client: this one may die
                self._handles.append(self._fleet.client.handle_of(fresh_id, REGISTRY.get(handle.handler)))
            else:  # another one stands for it
                del self._fleet.audit.plans[fresh_id]
        self._outside[life].discard((fresh_id, queue))

    def _submit_one(self) -> tuple[Handle[Any], int]:
        handle, fresh_id, _ = self._submit_to(self._fleet.client, on_full="reject")
        self._handles.append(handle)
        return handle, fresh_id

    def _submit_to(self, client: Client, on_full: OnFull | None = None) -> tuple[Handle[Any], int, str]:
        random, audit, queue = self._random, self._fleet.audit, self._random.choice(QUEUES)
        moves, parents = (
            draw_moves(random),
            random.sample(self._handles, min(len(self._handles), random.choice((0, 0, 1)))),
        )
        said = SubmitOptions(
            queue=queue,
            priority=random.choice(PRIORITIES),
            thread_id=random.choice(THREADS),
            on_full=random.choice(ON_FULL) if on_full is None else on_full,
            on_busy=random.choice(ON_BUSY),
        )
        if random.random() < 0.3:
            moves, parents = [("work", random.choice((1.0, 2.0)))], []
            said |= SubmitOptions(cache_s=random.choice((1.0, 60.0)), cache_tags="work")
        (handle,) = client.submit_calls([call(moves, inputs=parents, is_preemptible=random.random() < 0.5, **said)])
        audit.plans[handle.id] = Planned(tuple(parent.ref for parent in parents), "fail", children_of(moves))
        return handle, handle.id, queue

    async def _invalidate(self) -> None:
        try:
            await self._fleet.store.invalidate(tags=["work"])
        except StoreError:  # the disk was full
            return

    async def _kill_client(self) -> None:
        name = self._random.choice(CLIENTS)
        if self._fleet.loop.is_alive(name):
            self._fleet.loop.kill(name)

    async def _freeze_client(self) -> None:
        name, loop = self._random.choice(CLIENTS), self._fleet.loop
        if loop.is_alive(name):
            loop.freeze(name)
            loop.call_later(self._random.uniform(0.2, 10), self._thaw, name)


# ---------------------------------------------------------------- urgent ones


async def hurry(random: Random, loop: SimLoop, *, meddle: Meddle | None = None) -> Counter[str]:
    """Fill all slots with long tasks that make room between steps; see urgent ones start, and the long ones end.

    Raises:
        BrokenPromise: an urgent task waits, a step runs twice, or something is lost.
    """
    shape = replace(Shape.drawn(random), workers=random.randint(1, 2), schedules=(), trouble_probability=0.0)
    fleet = Fleet(random, loop, shape, truth=MemoryStore(now_us=steady_us(loop)), meddle=meddle)
    for name in fleet.names:
        fleet.start(name)
    slots = shape.workers * shape.slots["a"]
    steps: list[Move] = [("long step", 0.0)] * 60
    long_ones = [_submit(fleet, steps, is_preemptible=True) for _ in range(slots + random.randint(0, 2))]
    await _rest(2.0 + 4 * random.random())
    events: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (partial(_rest, 3.0), Chaos(fleet, random).harm)
    for _ in range(random.randint(0, 4)):
        await random.choice(events)()
    await fleet.calm()
    await _rest(8.0)  # leases of the dead have lapsed, and all slots are taken again
    for _ in range(random.randint(1, 3)):
        urgent = [
            await _stored(fleet, [("work", 0.5)], priority="urgent") for _ in range(random.randint(1, min(slots, 3)))
        ]
        until_s = loop.time() + HURRY_S * len(urgent)
        while (late := [i for i in urgent if fleet.audit.view(i).state is State.READY]) and loop.time() < until_s:
            await _rest(0.2)
        if late:
            raise BrokenPromise(f"urgent tasks {late} have not started, and only tasks that make room hold the slots")
        await _rest(3 * random.random())
    await fleet.settle()
    for handle in long_ones:
        fleet.audit.seen["attempts of long tasks"] += fleet.audit.view(handle.id).attempt
    fleet.audit.seen["preempted"] += sum(kind == "Preempted" for kind in fleet.audit.accepted.values())
    return fleet.audit.seen


async def _stored(fleet: Fleet, moves: list[Move], *, priority: str) -> int:
    handle = _submit(fleet, moves, priority=priority)
    await handle.stored()
    return handle.id


async def _rest(seconds: float) -> None:
    await asyncio.sleep(seconds)


def _submit(fleet: Fleet, moves: list[Move], *, is_preemptible: bool = False, priority: str = "normal") -> Handle[Any]:
    options = SubmitOptions(queue="a", priority=priority)
    (handle,) = fleet.client.submit_calls([call(moves, is_preemptible=is_preemptible, **options)])
    fleet.audit.plans[handle.id] = Planned((), "fail", 0)
    return handle
