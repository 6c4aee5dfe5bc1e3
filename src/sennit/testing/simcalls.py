"""Simulated fleets that call a provider: no call too many, none during a pause, and nobody waits for ever.

    w0 … wn: engines; tasks with a provider ─┐
    k0, k1:  clients that only call ─────────┼─► permits ─► SimServer "p": a cap, a quota that runs out ─► "q" stands in
    Chaos:   kills, freezes, steering, other bounds, budgets

`calls` checks that tasks are not to blame for what a provider refuses, too: none of them has a failure or a lost step.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Final

from sennit.errors import BrokenPromise, LimitError, StoreError, SubmitError
from sennit.model.provider import BreakerSpec, Budget, ProviderSpec, Rates, Strategy
from sennit.model.retry import RetryPolicy
from sennit.store.memory import MemoryStore
from sennit.store.memory_permits import Place
from sennit.submit.context import attempt_here
from sennit.submit.limits import Limits, Slot
from sennit.submit.options import SubmitOptions
from sennit.submit.registry import Call
from sennit.testing.simaudit import Planned
from sennit.testing.simbodies import HERE, QUEUES, REGISTRY
from sennit.testing.simchaos import Chaos
from sennit.testing.simfleet import QUIET_S, Fleet, Meddle, Shape, steady_us
from sennit.testing.simloop import SimLoop
from sennit.testing.simserver import CallBook, Refused, SimServer
from sennit.testing.simstore import SlowStore

__all__ = ["calls"]

CLIENTS: Final = ("k0", "k1")
NAMES: Final = ("p", "q")
ASKED: Final = ("p", "p", "p/m", "q")
STRATEGIES: Final[tuple[Strategy, ...]] = ("fixed", "aimd", "gradient", "vegas")
ROUNDS_MAX: Final = 120
"""Rounds of `QUIET_S` until all calls are made."""


@dataclass(frozen=True, slots=True)
class _World:
    """What who calls finds around him.

    Attributes:
        errors: how many calls of each task have failed for no lack of room.
    """

    servers: dict[str, SimServer]
    errors: Counter[int]
    is_alive: Callable[[str], Callable[[], bool]]


_WORLD: Final[ContextVar[_World]] = ContextVar("sennit.testing.world")


async def calls(
    random: Random, loop: SimLoop, *, truth: MemoryStore | None = None, meddle: Meddle | None = None
) -> Counter[str]:
    """Live through one fleet that calls providers; return how often what was seen.

    Args:
        truth: the shared store, by default a sound one.
        meddle: see `Fleet`.

    Raises:
        BrokenPromise: see `CallBook`; or somebody waits for ever, or a permit is never free again.
    """
    truth = truth or MemoryStore(now_us=steady_us(loop))
    seen: Counter[str] = Counter()
    servers = {name: SimServer(random, loop, cap=random.randint(1, 6), seen=seen) for name in NAMES}

    def lives(name: str) -> Callable[[], bool]:
        return partial(loop.is_alive, name)

    _WORLD.set(_World(servers, Counter(), lives))
    shape = replace(Shape.drawn(random), schedules=())
    fleet = Fleet(random, loop, shape, truth=truth, meddle=meddle)
    book = CallBook(truth._rows.providers, fleet.audit.object, seen)  # noqa: SLF001 - of this package
    market = _Market(fleet, random, book, servers)
    market.declare_all()
    for name in fleet.names:
        fleet.start(name)
        loop.crash_points(name, shape.crash_probability)
    for _ in range(random.randint(8, 26)):
        await market.next()
    await market.end()
    return seen


# ---------------------------------------------------------------- who calls


async def ask(asked: str, n: int) -> int:
    """Be a body that makes `n` calls, each with a permit."""
    here, attempt = HERE.get(), attempt_here("ask")
    task = attempt.task
    waiting = partial(here.audit.waiting, here.process, task)  # in line for a permit a body has no slot
    with here.audit.body(here.process, task, [], slots=here.slots[task.queue], is_sync=False, freezes=here.freezes):
        limits = Limits(lambda: attempt.store, lambda _model, _usage: 0)
        for _ in range(n):
            try:
                await _call(limits.slot(asked), here.process.partition(".")[0], waiting)
            except Refused as refused:
                _WORLD.get().errors[task.id] += refused.report.outcome == "error"
                raise
    return n


async def _call(slot: Slot, process: str, waiting: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
    world = _WORLD.get()
    async with AsyncExitStack() as stack:
        with waiting():
            call = await stack.enter_async_context(slot)
        try:
            call.report(await world.servers[call.provider].request(call.permit, world.is_alive(process)))
        except Refused as refused:
            call.report(refused.report)
            raise


_ASK: Final = REGISTRY.register(ask, name="ask", provider="p", retries=RetryPolicy(retries=100, delay_s=1.0))


class _Market(Chaos):
    """What happens around providers."""

    def __init__(self, fleet: Fleet, random: Random, book: CallBook, servers: dict[str, SimServer]) -> None:
        more: dict[Callable[[], Awaitable[None]], int] = {
            self._submit_asks: 10, self._come: 6, self._run_out: 3, self._steer: 2, self._redeclare: 2,
            self._kill_client: 1, self._freeze_client: 1, self._set_budget: 1,
        }  # fmt: skip
        super().__init__(fleet, random, more)
        self._book = book
        self._servers = servers
        self._asking: set[int] = set()

    def declare_all(self) -> None:
        """Declare both providers, as drawn."""
        for name in NAMES:
            self._fleet.truth.declare_provider(self._drawn(name)).wait()

    def _drawn(self, name: str) -> ProviderSpec:
        random = self._random
        rates = Rates(parallel=random.randint(1, 5), rpm=random.choice((0, 0, 60)), tpm=random.choice((0, 0, 9000)))
        return ProviderSpec(
            name=name,
            rates=rates,
            models={"m": Rates(parallel=random.randint(1, 2))},
            strategy=random.choice(STRATEGIES),
            breaker=random.choice((None, BreakerSpec(failures=2, open_s=5.0, probe_s=20.0))),
            fallbacks=random.choice(((), ("q",))) if name == "p" else (),
        )

    # ------------------------------------------------------------ the end

    async def end(self) -> None:
        """Wait until all calls are made and all tasks have ended, and see that nothing is out any more."""
        await self._fleet.calm()
        for name in CLIENTS:
            self._thaw(name)
        for server in self._servers.values():
            server.mend()
        lift_all = self._random.random() < 0.3
        for view in self._fleet.truth.providers().wait():
            if lift_all or view.breaker == "isolated":  # a pause ends by itself
                self._book.reset(view.spec.name)
                self._fleet.truth.steer_provider(view.spec.name, "reset").wait()
        self._fleet.truth.set_budget(Budget(scope="fleet")).wait()
        for _ in range(ROUNDS_MAX):
            if not any(self._fleet.loop.is_alive(name) for name in CLIENTS):
                break
            await self._check_nobody_is_forgotten()
        else:
            raise BrokenPromise(f"calls wait for ever: {self._waiting()}")
        await self._fleet.settle()
        await asyncio.sleep(QUIET_S)
        self._check_all_is_free()

    def _waiting(self) -> dict[str, int]:
        return {view.spec.name: view.waiting for view in self._fleet.truth.providers().wait() if view.waiting}

    async def _check_nobody_is_forgotten(self) -> None:
        """Check that nobody waits for a provider that has room, and gives no permit."""
        given = self._book.given
        before = self._could_go()
        await asyncio.sleep(QUIET_S)
        forgotten = sorted(before & self._could_go())
        if forgotten and given == self._book.given:
            raise BrokenPromise(f"calls {forgotten} wait, and for {QUIET_S} s there has been room for them")

    def _could_go(self) -> set[int]:
        """Return the calls that are first in their lines, and for which there is room, or was to be by now."""
        truth, found, lines = self._fleet.truth, set[int](), set[Place]()
        providers = truth._rows.providers  # noqa: SLF001 - a call would be a transaction, which serves those who wait
        providers.begin(now_us=truth.now_us(), parallel=providers.parallel)
        for waiting in providers.permits.in_line():
            if waiting.line not in lines:
                lines.add(waiting.line)
                answer = providers.seek(waiting.request.provider, tokens=waiting.request.tokens, is_alone=True)
                if answer.place is not None:
                    found.add(waiting.request.id)
        return found

    def _check_all_is_free(self) -> None:
        views = self._fleet.truth.providers().wait()
        still = {view.spec.name: (view.in_use, view.waiting) for view in views if view.in_use or view.waiting}
        if still or self._book.out():
            raise BrokenPromise(f"all has ended, and in use and waiting are {still}; out are {self._book.out()}")
        faults = self._fleet.truth.verify().wait()
        if faults:
            raise BrokenPromise("; ".join(faults))
        for task_id in self._asking & self._fleet.audit.plans.keys():
            failures, errors = self._fleet.audit.view(task_id).failures, _WORLD.get().errors[task_id]
            if failures > errors:
                raise BrokenPromise(f"task {task_id} counts {failures} failures, and {errors} of its calls have failed")

    # ------------------------------------------------------------ who comes

    async def _submit_asks(self) -> None:
        random = self._random
        for _ in range(random.randint(1, 4)):
            asked = random.choice(ASKED)
            options = SubmitOptions(
                provider=asked, queue=random.choice(QUEUES), priority=random.choice(("low", "normal", "urgent"))
            )
            call = Call(_ASK, _ASK.options.replaced(options), (asked, random.randint(1, 3)), {})
            (handle,) = self._fleet.client.submit_calls([call])
            self._fleet.audit.plans[handle.id] = Planned((), "fail", 0)
            try:
                await handle.stored()
            except (StoreError, SubmitError):
                del self._fleet.audit.plans[handle.id]
            else:
                self._handles.append(handle)
                self._asking.add(handle.id)

    async def _come(self) -> None:
        """Let a client make a few calls, one after the other or all at once."""
        name = self._random.choice(CLIENTS)
        self._fleet.visit(name, partial(self._be_client, name))

    async def _be_client(self, name: str, store: SlowStore) -> None:
        random = self._random
        limits, making = Limits(lambda: store, lambda _model, _usage: 0), list[asyncio.Task[None]]()
        for _ in range(random.randint(1, 8)):
            call = self._call(limits, random.choice(ASKED), name)
            making.append(asyncio.get_running_loop().create_task(call, name=f"call of {name}"))
            await asyncio.sleep(random.choice((0.0, 0.3)))
            if random.random() < 0.1:
                making[0].cancel()
        await asyncio.gather(*making, return_exceptions=True)
        await asyncio.sleep(1.0)  # what it returns reaches the store
        self._fleet.loop.kill(name)

    async def _call(self, limits: Limits, asked: str, name: str) -> None:
        tokens, wait = self._random.choice((0, 100, 1500)), self._random.random() < 0.9
        try:
            await _call(limits.slot(asked, tokens=tokens, wait=wait), name)
        except (Refused, LimitError, StoreError):
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

    # ------------------------------------------------------------ what happens to providers

    async def _run_out(self) -> None:
        self._servers[self._random.choice(NAMES)].run_out(self._random.choice((2.0, 10.0, 40.0)))

    async def _steer(self) -> None:
        name, truth = self._random.choice(NAMES), self._fleet.truth
        match self._random.choice(("pause", "isolate", "reset", "reset")):
            case "pause":
                until_us = truth.now_us() + self._random.randint(1, 20) * 1_000_000
                truth.steer_provider(name, "pause", until_us=until_us).wait()
                self._book.paused(name, until_us)
            case "isolate":
                truth.steer_provider(name, "isolate").wait()
            case _:
                self._book.reset(name)
                truth.steer_provider(name, "reset").wait()

    async def _redeclare(self) -> None:
        self._fleet.truth.declare_provider(self._drawn(self._random.choice(NAMES))).wait()

    async def _set_budget(self) -> None:
        tokens = self._random.choice((0, 10**6))
        self._fleet.truth.set_budget(Budget(scope="fleet", tokens_max=tokens)).wait()
