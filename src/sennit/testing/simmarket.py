"""Simulated fleets whose bodies pay: each payment takes place at most once, however often their processes are killed.

The life of a fleet is that of `simchaos`; what its bodies do is drawn in `simeffects`.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from sennit.store.memory import MemoryStore
from sennit.submit.handle import Handle
from sennit.submit.options import SubmitOptions
from sennit.testing.simaudit import Planned
from sennit.testing.simbodies import QUEUES, call
from sennit.testing.simchaos import SYNC_SHARE, Chaos
from sennit.testing.simeffects import EFFECTS, draw_effects
from sennit.testing.simfleet import Fleet, Meddle, Shape, steady_us
from sennit.testing.simloop import SimLoop

__all__ = ["trade"]


async def trade(
    random: Random, loop: SimLoop, *, truth: MemoryStore | None = None, meddle: Meddle | None = None
) -> Counter[str]:
    """Live through one fleet of bodies that pay; return how often what was seen.

    Args:
        truth: the shared store, by default a sound one.
        meddle: see `Fleet`.

    Raises:
        BrokenPromise: something was paid twice, or not at all; or any other promise of a fleet.
    """
    shape = Shape.drawn(random)
    fleet = Fleet(random, loop, shape, truth=truth or MemoryStore(now_us=steady_us(loop)), meddle=meddle)
    for name in fleet.names:
        fleet.start(name)
        loop.crash_points(name, shape.crash_probability)
    market = _Market(fleet, random)
    for _ in range(random.randint(8, 26)):
        await market.next()
    await fleet.calm()
    await fleet.settle()
    return fleet.audit.seen


class _Market(Chaos):
    """What happens to bodies that pay."""

    def _submit_one(self) -> tuple[Handle[Any], int]:
        random, audit = self._random, self._fleet.audit
        moves = draw_effects(random)
        is_sync = random.random() < SYNC_SHARE
        options = SubmitOptions(queue=random.choice(QUEUES), priority=random.choice(("low", "normal", "high")))
        (handle,) = self._fleet.client.submit_calls([call(moves, is_sync=is_sync, **options)])
        audit.plans[handle.id] = Planned((), "fail", 0)
        audit.effects.planned[handle.id] = [n for n, (what, _) in enumerate(moves) if what in EFFECTS]
        self._handles.append(handle)
        return handle, handle.id
