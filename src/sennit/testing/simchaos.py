"""What happens to a simulated fleet: the whole life of one, drawn from a seed.

start ─► a dozen events at random moments, crashes between any two awaits ─► calm ─► all has ended, all promises hold
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final

from sennit.errors import StoreError, SubmitError
from sennit.model.task import OnConflict, OnParentFailed
from sennit.store.memory import MemoryStore
from sennit.submit.handle import Handle
from sennit.submit.options import SubmitOptions
from sennit.testing.simaudit import Planned
from sennit.testing.simbodies import CHILD_KEYS, QUEUES, call, children_of, draw_moves
from sennit.testing.simbooks import Times
from sennit.testing.simfleet import LEASE_S, Fleet, Meddle, Shape, steady_us
from sennit.testing.simloop import SimLoop

__all__ = ["Chaos", "explore"]

POLICIES: Final[tuple[OnParentFailed, ...]] = ("fail", "fail", "run", "cancel")
ON_CONFLICT: Final[tuple[OnConflict, ...]] = ("existing", "reject", "replace")
TOP_KEYS: Final = ("k1", "k2")
TIMES: Final = (
    *(Times(),) * 4,
    Times(timeout_s=1.5),
    Times(idle_timeout_s=1.0),
    Times(timeout_s=4.0, idle_timeout_s=2.0),
)
SYNC_SHARE: Final = 0.2


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
    chaos = Chaos(fleet, random)
    for _ in range(random.randint(8, 26)):
        await chaos.next()
    await fleet.calm()
    await fleet.settle()


class Chaos:
    """Draws events; `more` are drawn beside the usual ones, by weight."""

    def __init__(
        self, fleet: Fleet, random: Random, more: dict[Callable[[], Awaitable[None]], int] | None = None
    ) -> None:
        self._fleet = fleet
        self._random = random
        self._handles: list[Handle[Any]] = []
        events: dict[Callable[[], Awaitable[None]], int] = {
            self._submit: 8, self._cancel: 2, self._revive: 2, self._resume: 1, self._kill: 2, self._freeze: 4,
            self._start: 3, self._stop: 2, self._set_clock: 1,
        }  # fmt: skip
        events |= more or {}
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
        for handle, fresh_id in fresh:
            try:
                await handle.stored()
            except (StoreError, SubmitError):  # the disk was full, perhaps already for its parent; or the key is taken
                self._handles.remove(handle)
                del self._fleet.audit.plans[fresh_id]
            else:
                if handle.id != fresh_id:  # another task has the key
                    del self._fleet.audit.plans[fresh_id]

    def _submit_one(self) -> tuple[Handle[Any], int]:
        """Hand in one task; return its handle, and the id that it has unless another one has its key."""
        random = self._random
        key = random.choice((None, None, None, *TOP_KEYS, *CHILD_KEYS))
        parents = random.sample(self._handles, min(len(self._handles), random.choice((0, 0, 1, 1, 2, 3))))
        moves, policy, times = draw_moves(random), random.choice(POLICIES), random.choice(TIMES)
        if key in CHILD_KEYS:
            moves, parents = [("work", random.uniform(0, 4))], []
        elif times.idle_timeout_s is not None:
            moves = [
                move for move in moves if move[0] != "sleep"
            ]  # its save is a sign of life, or not, if it was saved
        options = SubmitOptions(
            queue=random.choice(QUEUES),
            on_parent_failed=policy,
            priority=random.choice(("low", "normal", "high")),
            delay_s=random.choice((0, 0, 0, 2.5)),
            thread_id=random.choice((None, None, None, "talk")) if key not in CHILD_KEYS else None,
            key=key,
            on_conflict=random.choice(ON_CONFLICT),
        )
        if times.timeout_s is not None:
            options["timeout_s"] = times.timeout_s
        if times.idle_timeout_s is not None:
            options["idle_timeout_s"] = times.idle_timeout_s
        is_sync = random.random() < SYNC_SHARE
        (handle,) = self._fleet.client.submit_calls([call(moves, inputs=parents, is_sync=is_sync, **options)])
        plan = Planned(tuple(parent.ref for parent in parents), policy, children_of(moves), times)
        self._fleet.audit.plans[handle.id] = plan
        self._handles.append(handle)
        return handle, handle.id

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

    async def harm(self) -> None:
        """Let one thing happen to a machine."""
        await self._random.choice((self._kill, self._freeze, self._start))()

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
        hours_s = 600 if self._fleet.shape.schedules else 3600  # what an hour leaves out would be a crowd of runs
        self._fleet.loop.step_clock(self._random.choice((-1, 1)) * hours_s * 1_000_000)
