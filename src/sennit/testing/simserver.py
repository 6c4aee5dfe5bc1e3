"""A simulated model provider, and the book of the permits for it.

bodies, clients ─► permit ─► request ─► SimServer: refused (too many at once, no quota left), an error, or an answer
                     └────► CallBook: sees every permit as it is given and comes back, and objects
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final, NoReturn

from sennit.limit.pause import PROBE_US
from sennit.model.provider import CallOutcome, CallReport, PauseKind, Permit, Usage
from sennit.store.memory_permits import Held, Place, Waiting
from sennit.store.memory_providers import Providers

__all__ = ["CallBook", "Refused", "SimServer"]

ERROR_PROBABILITY: Final = 0.03


class Refused(Exception):
    """A call that was not answered; `report` says how it went."""

    def __init__(self, report: CallReport) -> None:
        super().__init__(report.outcome)
        self.report = report


class SimServer:
    """One provider of calls, with a cap that its clients do not know and a quota that runs out now and then.

    Args:
        is_alive: whether a life of a process still runs: the requests of the dead are dropped.
    """

    def __init__(self, random: Random, loop: asyncio.AbstractEventLoop, *, cap: int, seen: Counter[str]) -> None:
        self.seen = seen
        self.no_quota_until_s = 0.0
        self._random = random
        self._loop = loop
        self._cap = cap
        self._open: dict[int, Callable[[], bool]] = {}

    def run_out(self, seconds: float) -> None:
        """Answer nothing for so long."""
        self.no_quota_until_s = self._loop.time() + seconds

    def mend(self) -> None:
        """Answer everybody from now on."""
        self.no_quota_until_s, self._cap = 0.0, 10**6

    async def request(self, permit: Permit, is_alive: Callable[[], bool]) -> CallReport:
        """Answer one call after a while.

        Args:
            is_alive: whether who calls still lives: the calls of the dead are dropped.

        Raises:
            Refused: it is not answered.
        """
        self.seen["requests"] += 1
        self._open = {number: lives for number, lives in self._open.items() if lives()}
        await asyncio.sleep(0.05 * self._random.random())
        left_s = self.no_quota_until_s - self._loop.time()
        if left_s > 0:
            self._refuse("throttled", "window", left_s)
        if len(self._open) >= self._cap:
            self._refuse("throttled", "burst", None)
        self._open[permit.id] = is_alive
        try:
            await asyncio.sleep(self._random.choice((0.1, 1.0, 3.0)) * self._random.random())
        finally:
            self._open.pop(permit.id, None)
        if self._random.random() < ERROR_PROBABILITY:
            self._refuse("error", "", None)
        self.seen["answers"] += 1
        return CallReport(usage=Usage(input_tokens=self._random.randint(1, 400), output_tokens=100))

    def _refuse(self, outcome: CallOutcome, pause: PauseKind | Any, retry_after_s: float | None) -> NoReturn:
        self.seen[pause or outcome] += 1
        raise Refused(CallReport(outcome=outcome, status=429, pause=pause, retry_after_s=retry_after_s))


@dataclass(slots=True)
class _Pool:
    """What the book has of one provider.

    Attributes:
        out: permits that are out → their model, in the order in which they were given.
        closed_us: nothing is given before this.  since_us: when that became known.
        probe: the permit that finds out, and when it was given.  is_ramping: one has come back well since then.
    """

    out: dict[int, str]
    since_us: int = 0
    closed_us: int = 0
    probe: tuple[int, int] | None = None
    is_ramping: bool = True


class CallBook:
    """Sees every permit as it is given and comes back; keeps its own count, never asks the store for one.

    Args:
        providers: of the shared store; its moves are watched.
        object_to: called with the sentence when a promise is broken.
    """

    def __init__(self, providers: Providers, object_to: Callable[[str], object], seen: Counter[str]) -> None:
        self.given = 0
        self._providers = providers
        self._object_to = object_to
        self._seen = seen
        self._pools: dict[str, _Pool] = {}
        grant, release = providers._grant, providers._release  # noqa: SLF001 - what is watched

        def watched_grant(place: Place, waiting: Waiting) -> Permit:
            self._before_grant(place, waiting)
            permit = grant(place, waiting)
            self._after_grant(permit)
            return permit

        def watched_release(held: Held, report: CallReport | None) -> None:
            release(held, report)
            self._after_release(held, report)

        providers._grant, providers._release = watched_grant, watched_release  # type: ignore[method-assign] # noqa: SLF001

    def _pool(self, name: str) -> _Pool:
        return self._pools.setdefault(name, _Pool({}))

    def reset(self, name: str) -> None:
        """Whatever held a provider back was lifted by hand."""
        self._pools[name] = _Pool(self._pool(name).out)

    def paused(self, name: str, until_us: int) -> None:
        """A provider was paused by hand."""
        self._close(self._pool(name), until_us)

    def _close(self, pool: _Pool, until_us: int) -> None:
        pool.since_us, pool.closed_us = self._providers.now_us, max(until_us, pool.closed_us)
        pool.probe, pool.is_ramping = None, False

    def out(self) -> dict[str, list[int]]:
        """Return the permits that are out, by provider."""
        return {name: list(pool.out) for name, pool in self._pools.items() if pool.out}

    # ------------------------------------------------------------ what is watched

    def _before_grant(self, place: Place, waiting: Waiting) -> None:
        name, model = place
        spec, pool, now_us = self._providers.use(name).spec, self._pool(name), self._providers.now_us
        where = f"permit {waiting.request.id} of {name!r} was given"
        if len(pool.out) >= spec.parallel:
            self._object_to(f"{where}, and {len(pool.out)} of {spec.parallel} are out")
        own = spec.models.get(model)
        if own is not None and own.parallel and Counter(pool.out.values())[model] >= own.parallel:
            self._object_to(f"{where}, and all of its model {model!r} are out")
        if now_us < pool.closed_us:
            self._object_to(f"{where} {(pool.closed_us - now_us) / 1e6:g} s before the end of a pause")
        if pool.probe is not None and not pool.is_ramping and now_us < pool.probe[1] + PROBE_US:
            self._object_to(f"{where}, and permit {pool.probe[0]} is to find out first")
        for other in self._providers.permits.waiting.values():
            is_ahead = other is not waiting and other.line == waiting.line and other.order < waiting.order
            if is_ahead and waiting.request.task_id != waiting.request.id:
                self._object_to(f"{where}, and call {other.request.id} waits before it")
            if other.line == waiting.line and waiting.request.task_id == waiting.request.id:
                self._object_to(f"{where} to a task, and call {other.request.id} waits")

    def _after_grant(self, permit: Permit) -> None:
        pool = self._pool(permit.provider)
        if permit.id in pool.out:
            self._object_to(f"permit {permit.id} was given twice")
        pool.out[permit.id] = permit.model
        self.given += 1
        self._seen["fallback"] += bool(permit.fallback_for)
        self._seen["waited"] += permit.waited_us > 0
        if not pool.is_ramping and (pool.probe is None or permit.granted_us >= pool.probe[1] + PROBE_US):
            self._seen["probes"] += 1
            pool.is_ramping = pool.probe is not None  # one that nobody refuses for so long has passed
            pool.probe = permit.id, permit.granted_us

    def _after_release(self, held: Held, report: CallReport | None) -> None:
        permit, pool = held.permit, self._pool(held.permit.provider)
        if pool.out.pop(permit.id, None) is None:
            self._object_to(f"permit {permit.id} came back and was not out")
        self._seen["not used"] += report is None
        is_news = permit.granted_us >= pool.since_us
        if report is not None and report.pause == "window" and is_news:
            self._close(pool, self._providers.now_us + int((report.retry_after_s or 0) * 1e6))
        elif pool.probe is not None and permit.id == pool.probe[0] and not pool.is_ramping:
            if report is not None and report.outcome in {"ok", "refused"}:
                pool.is_ramping = True
            else:
                pool.probe = None  # another one has to find out
