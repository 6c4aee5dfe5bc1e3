"""What happens to a simulated fleet: the whole life of one, drawn from a seed.

start ─► a dozen events at random moments, crashes between any two awaits ─► calm ─► all has ended, all promises hold
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final

from sennit.errors import StoreError, SubmitError
from sennit.model.task import OnParentFailed
from sennit.store.memory import MemoryStore
from sennit.submit.handle import Handle
from sennit.submit.options import SubmitOptions
from sennit.testing.simaudit import Planned
from sennit.testing.simbodies import QUEUES, call, children_of, draw_moves
from sennit.testing.simfleet import LEASE_S, Fleet, Meddle, Shape, steady_us
from sennit.testing.simloop import SimLoop

__all__ = ["explore"]

POLICIES: Final[tuple[OnParentFailed, ...]] = ("fail", "fail", "run", "cancel")


async def explore(
    random: Random, loop: SimLoop, *, truth: MemoryStore | None = None, meddle: Meddle | None = None
) -> None:
    """Live through one fleet.

    Args:
        truth: the shared store, by default a sound one.
        meddle: see `Fleet`.

    Raises:
        BrokenPromise: something was lost, repeated, held up or done out of turn.
    """
    shape = Shape.drawn(random)
    fleet = Fleet(random, loop, shape, truth=truth or MemoryStore(now_us=steady_us(loop)), meddle=meddle)
    for name in fleet.names:
        fleet.start(name)
        loop.crash_points(name, shape.crash_probability)
    chaos = _Chaos(fleet, random)
    for _ in range(random.randint(8, 26)):
        await chaos.next()
    await fleet.calm()
    await fleet.settle()


class _Chaos:
    """Draws events."""

    def __init__(self, fleet: Fleet, random: Random) -> None:
        self._fleet = fleet
        self._random = random
        self._handles: list[Handle[Any]] = []
        events: dict[Callable[[], Awaitable[None]], int] = {
            self._submit: 8, self._cancel: 2, self._revive: 2, self._resume: 1, self._kill: 2, self._freeze: 4,
            self._start: 3, self._stop: 2, self._set_clock: 1,
        }  # fmt: skip
        self._events, self._weights = list(events), list(events.values())

    async def next(self) -> None:
        """Let one thing happen, after a while."""
        await asyncio.sleep(self._random.choice((0.0, 0.5, 4.0)) * self._random.random())
        (event,) = self._random.choices(self._events, self._weights)
        await event()

    # ------------------------------------------------------------ what users do

    async def _submit(self) -> None:
        """Hand in a few tasks, the later ones perhaps depending on the earlier, not all of them stored yet."""
        fresh = [self._submit_one() for _ in range(self._random.randint(1, 3))]
        for handle in fresh:
            try:
                await handle.stored()
            except (StoreError, SubmitError):  # the disk was full, perhaps already for its parent
                del self._fleet.audit.plans[handle.id]
                self._handles.remove(handle)

    def _submit_one(self) -> Handle[Any]:
        random = self._random
        parents = random.sample(self._handles, min(len(self._handles), random.choice((0, 0, 1, 1, 2, 3))))
        moves, policy = draw_moves(random), random.choice(POLICIES)
        options = SubmitOptions(
            queue=random.choice(QUEUES),
            on_parent_failed=policy,
            priority=random.choice(("low", "normal", "high")),
            delay_s=random.choice((0, 0, 0, 2.5)),
            thread_id=random.choice((None, None, None, "talk")),
        )
        (handle,) = self._fleet.client.submit_calls([call(moves, inputs=parents, **options)])
        self._fleet.audit.plans[handle.id] = Planned(tuple(p.id for p in parents), policy, children_of(moves))
        self._handles.append(handle)
        return handle

    async def _with_one(self, act: Callable[[Handle[Any]], Awaitable[Any]]) -> None:
        if self._handles:
            try:
                await act(self._random.choice(self._handles))
            except StoreError:  # the disk was full: nothing happened
                return

    async def _cancel(self) -> None:
        await self._with_one(lambda handle: handle.cancel("drawn"))

    async def _revive(self) -> None:
        def revive(handle: Handle[Any]) -> Awaitable[Any]:
            self._fleet.audit.revived.add(handle.id)
            return self._fleet.store.revive([handle.id])

        await self._with_one(revive)

    async def _resume(self) -> None:
        await self._with_one(lambda handle: self._fleet.store.resume([handle.id]))

    # ------------------------------------------------------------ what machines do

    async def _kill(self) -> None:
        living = self._fleet.living()
        if living:
            self._fleet.loop.kill(self._random.choice(living))

    async def _freeze(self) -> None:
        """Stop a process for a while, often for longer than its lease: it comes back as a zombie."""
        living = self._fleet.living()
        if living:
            name, loop = self._random.choice(living), self._fleet.loop
            loop.freeze(name)
            loop.call_later(self._random.uniform(0.2, 4) * LEASE_S, self._thaw, name)

    def _thaw(self, name: str) -> None:
        if self._fleet.loop.is_alive(name):
            self._fleet.loop.thaw(name)

    async def _start(self) -> None:
        self._fleet.start(self._random.choice(self._fleet.names))

    async def _stop(self) -> None:
        living = self._fleet.living()
        if living:
            self._fleet.stop(self._random.choice(living))

    async def _set_clock(self) -> None:
        self._fleet.loop.step_clock(self._random.choice((-1, 1)) * 3600 * 1_000_000)
