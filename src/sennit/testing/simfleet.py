"""A whole fleet on virtual time: real engines and clients on a slow store, killed, frozen and stopped at any moment.

    processes w0 … wn: Engine (dispatcher, slots, worker, attempts) ─► SlowStore ─┐
    main:              Client, and Chaos (submits, cancels, kills, freezes …)   ─► SlowStore ─┼─► one MemoryStore ◄─ Audit

Nothing of the runtime is replaced but what has an OS thread or a clock of its own: the heart beats on the loop, sync bodies
run in a `SimPool`, schedules go by the simulated wall clock. What happens to a fleet is drawn in `simchaos`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, Final, cast

from sennit.errors import BrokenPromise, StoreError
from sennit.execute.pool import BodyPool
from sennit.model.agent import AgentView
from sennit.model.lifecycle import State
from sennit.model.settings import Settings
from sennit.model.task import Claim, TaskSpec
from sennit.runtime.engine import Engine
from sennit.schedule.cron import CronSpec
from sennit.schedule.heart import FENCE_MARGIN
from sennit.schedule.planner import Planned
from sennit.store.memory import MemoryStore
from sennit.store.protocol import Store
from sennit.submit.client import Client
from sennit.testing.clock import EPOCH_US
from sennit.testing.simaudit import Audit
from sennit.testing.simbodies import HERE, QUEUES, REGISTRY, Here, call
from sennit.testing.simcron import SimPlanner, draw_schedules
from sennit.testing.simloop import SimLoop
from sennit.testing.simpool import SimPool
from sennit.testing.simstore import SlowStore
from sennit.testing.simturns import note_claims

__all__ = ["END_S", "LEASE_S", "QUIET_S", "SETTINGS", "Fleet", "Meddle", "Shape", "SimHeart", "steady_us"]

LEASE_S: Final = 3.0
QUIET_S: Final = 5.0
"""Longer than any chain of store calls between a slot that becomes free and the body that takes it."""

LATE_US_MAX: Final = 6_000_000
"""A schedule whose submit met trouble is tried again after 5 s."""

STOP_S: Final = 60.0
"""A graceful stop drains for 10 s at most, then hands back what is left."""

END_S: Final = 600.0
"""All tasks of a seed end within this, once nobody dies any more: retries back off to 8 s, leases are 3 s.

The longest of 1,900 seeds takes 199 s from its first task on. A part that is broken is waited for to the end, twice.
"""

SETTINGS: Final = Settings(lease_s=LEASE_S, log_capture=False, loop_lag_notice_s=3600.0, no_worker_notice_s=3600.0)


Meddle = Callable[[Engine, SlowStore], None]


class SimHeart:
    """`schedule.heart.Heart` as a task of the loop: simulated processes have no OS threads."""

    def __init__(
        self,
        store: Store,
        worker_id: int,
        *,
        lease_s: float,
        on_beat: Callable[[list[Claim]], None],
        on_trouble: Callable[[StoreError], None],
        on_fence: Callable[[str], None],
        on_back: Callable[[], None],
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._on_beat = on_beat
        self._on_trouble = on_trouble
        self._on_fence = on_fence
        self._on_back = on_back
        self._is_fenced = False
        self._holding = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def held(self, n: int) -> None:
        """Say how many attempts are held now."""
        if n:
            self._holding.set()
        else:
            self._holding.clear()

    def stop(self) -> None:
        """Beat no more."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            if not self._is_fenced:
                await self._holding.wait()
            await asyncio.sleep(self._lease_s / 3)
            if self._holding.is_set() or self._is_fenced:
                try:
                    held = await self._store.heartbeat(self._worker_id, int(self._lease_s * 1_000_000))
                except StoreError as error:
                    self._on_trouble(error)
                    left_us = self._store.lease_until_us - self._store.now_us()
                    if not self._is_fenced and left_us <= self._lease_s * FENCE_MARGIN * 1_000_000:
                        self._is_fenced = True
                        self._on_fence(str(error))
                else:
                    if self._is_fenced:
                        self._is_fenced = False
                        self._on_back()
                    self._on_beat(held)


@dataclass(frozen=True, slots=True)
class Shape:
    """What one seed draws for its fleet; times in seconds, virtual."""

    workers: int
    slots: dict[str, int]
    schedules: tuple[CronSpec, ...]
    delay_s_max: float
    crash_probability: float
    trouble_probability: float
    claim_ahead: int = 0

    @classmethod
    def drawn(cls, random: Random) -> Shape:
        """Draw one."""
        drawn = cls(
            workers=random.randint(1, 4),
            slots={queue: random.randint(1, 3) for queue in QUEUES} | {"cpu": 1},
            schedules=draw_schedules(random),
            delay_s_max=random.choice((0.0, 0.01, 0.3)),
            crash_probability=random.choice((0.0, 0.0, 0.001, 0.005)),
            trouble_probability=random.choice((0.0, 0.0, 0.03)),
        )
        # From the rest of the shape, so that a seed from before there was this is the same story still.
        return replace(drawn, claim_ahead=Random(repr(drawn.slots)).choice((0, 0, 1, 4, 16)))


@dataclass(slots=True)
class _Process:
    """One life of a worker process; a restart is another."""

    name: str
    life: str
    store: SlowStore | None = None
    engine: Engine | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)


class Fleet:
    """The processes of one seed.

    Args:
        truth: the shared store; its clock must be `steady_us(loop)`.
        meddle: called with each engine before it starts; tests break parts here, to see the audit notice.
        settings: of all its processes.

    Attributes:
        nudge: called now and then while the fleet settles; by default it resumes what is parked.
    """

    def __init__(
        self,
        random: Random,
        loop: SimLoop,
        shape: Shape,
        *,
        truth: MemoryStore,
        meddle: Meddle | None = None,
        settings: Settings = SETTINGS,
    ) -> None:
        self.loop = loop
        self.shape = shape
        self.audit = Audit(truth, loop, threads_max=truth._bounds.threads_max)  # noqa: SLF001 - of this package
        note_claims(truth, self.audit.claims.extend, self.audit.begins.add)
        self.settings = replace(settings, claim_ahead=shape.claim_ahead)
        self.nudge: Callable[[], object] = self._resume_parked
        self.audit.cron.plan(shape.schedules)
        self.truth = truth
        self.is_troubled = True
        self._random = random
        self._meddle = meddle
        self._lives = 0
        self._processes: dict[str, _Process] = {}
        self.store = self.connect()
        self.client = self.client_of(lambda: self.store)

    @property
    def names(self) -> list[str]:
        """All workers there may be."""
        return [f"w{n}" for n in range(self.shape.workers)]

    def living(self) -> list[str]:
        """Return the workers that live, frozen ones too."""
        return [name for name in self.names if self.loop.is_alive(name)]

    def client_of(self, store: Callable[[], SlowStore]) -> Client:
        """Return a client on a process's connection."""
        return Client(store, self.settings, lambda _queue: True)

    def connect(self) -> SlowStore:
        """Return a connection for the process this is called in."""
        return SlowStore(
            self.truth,
            self.loop,
            self._random,
            delay_s_max=self.shape.delay_s_max,
            trouble=lambda: self.is_troubled and self._random.random() < self.shape.trouble_probability,
            audit=self.audit,
        )

    # ------------------------------------------------------------ one process

    def start(self, name: str) -> None:
        """Start a worker process, unless it lives."""
        if self.loop.is_alive(name):
            return
        self._lives += 1
        process = self._processes[name] = _Process(name, f"{name}.{self._lives}")
        with self.loop.process(name):
            self.loop.create_task(self._run(process), name=f"main of {process.life}")
        self.loop.create_task(self._bury(process), name=f"watch {process.life}")

    async def _run(self, process: _Process) -> None:
        """Be a worker process, until asked to stop."""
        client = self.client_of(lambda: store)
        freezes = partial(self.loop.freezes, process.name)

        def note(claim: Claim, view: AgentView) -> None:
            store.note_agent(claim, view)  # whether it was heard is the audit's to know

        HERE.set(Here(process.life, self.shape.slots, freezes, self.audit, client.submit_calls, note))
        store = process.store = self.connect()  # what it delivers runs in the context that is here now
        engine = process.engine = Engine(
            store,
            REGISTRY,
            self.settings,
            queues=self.shape.slots,
            schedules=[Planned(spec, partial(self._run_of, client)) for spec in self.shape.schedules],
            heart=SimHeart,
            pool=cast("Callable[..., BodyPool]", SimPool),
            planner=SimPlanner,
            random=Random(self._random.random()),
        )
        if self._meddle is not None:
            self._meddle(engine, store)
        await engine.start()
        process.started.set()
        await process.stop.wait()
        await engine.stop(self._random.choice((0.0, 1.0, 10.0)))
        self._check_nothing_held(engine)
        self.loop.kill(process.name)

    def _run_of(self, client: Client, run_us: int) -> TaskSpec:
        """Make what a schedule submits for one nominal time."""
        (spec,) = client.specs([call([("work", 0.1)], queue=QUEUES[0])])
        return self.audit.cron.made(spec, run_us)

    def _check_nothing_held(self, engine: Engine) -> None:
        for view in self.truth.tasks(states=[State.RUNNING], limit=10**6).wait():
            if view.worker_id == engine.worker_id:
                self.audit.object(f"worker {engine.worker_id} has stopped and still holds task {view.id}")

    async def _bury(self, process: _Process) -> None:
        """Let the others learn of a death as the kernel tells them: soon."""
        if self.loop.is_alive(process.name) and self._processes[process.name] is process:
            await self.loop.wait_killed(process.name)
        await asyncio.sleep(self._random.random() * 0.1)
        if process.store is not None:
            process.store.close()

    def visit(self, name: str, main: Callable[[SlowStore], Coroutine[Any, Any, None]]) -> None:
        """Start a process that is no worker, unless it lives; `main` gets its connection."""
        if self.loop.is_alive(name):
            return
        opened: list[SlowStore] = []

        async def run() -> None:
            opened.append(self.connect())
            await main(opened[0])

        with self.loop.process(name):
            self.loop.create_task(run(), name=f"main of {name}")
        self.loop.create_task(self._see_off(name, opened), name=f"watch {name}")

    async def _see_off(self, name: str, opened: list[SlowStore]) -> None:
        if self.loop.is_alive(name):
            await self.loop.wait_killed(name)
        await asyncio.sleep(self._random.random() * 0.1)
        for store in opened:
            store.close()

    def stop(self, name: str) -> None:
        """Stop a worker gracefully."""
        self._processes[name].stop.set()

    def thaw_all(self) -> None:
        """Let every frozen process go on."""
        for name in self.living():
            self.loop.thaw(name)

    # ------------------------------------------------------------ quiet moments

    async def calm(self) -> None:
        """End all faults, and see to it that somebody lives: everybody who does, or one that has to do it all."""
        self.is_troubled = False
        for name in self.names:
            self.loop.crash_points(name, 0.0)
        await asyncio.sleep(self._random.choice((0.0, 2 * LEASE_S)))
        self.thaw_all()
        staying = [name for name in self.living() if not self._processes[name].stop.is_set()]
        if not staying:
            first = self.names[0]
            await self._wait_stopped(first)
            self.start(first)
        elif self._random.random() < 0.5:
            for name in staying[1:]:
                self.loop.kill(name)

    async def _wait_stopped(self, name: str) -> None:
        if self.loop.is_alive(name):
            try:
                await asyncio.wait_for(self.loop.wait_killed(name), STOP_S)
            except TimeoutError:
                raise BrokenPromise(f"{name} was asked to stop and still runs after {STOP_S} s") from None

    async def check_no_slot_is_wasted(self) -> None:
        """Check that no task stays ready while a slot for it stays free."""
        ready, free = self._ready(), self._free()
        await asyncio.sleep(QUIET_S)
        still_ready, still_free = ready & self._ready(), self._free()
        for (life, queue), starts in free.items():
            stuck = sorted(task_id for task_id, _, wanted in still_ready if wanted == queue)
            if stuck and still_free.get((life, queue)) == starts:
                raise BrokenPromise(
                    f"tasks {stuck} of queue {queue!r} are ready, and {life} has had a slot for {QUIET_S} s"
                )

    def _ready(self) -> set[tuple[int, int, str]]:
        """Return the ready tasks that no provider holds back, and those that are held ahead and have not begun."""
        ready = self.truth.tasks(states=[State.READY], limit=10**6).wait()
        held = [row for tasks in self.truth._rows.held.values() for row in tasks.values()]  # noqa: SLF001 - of this package
        return {(v.id, v.attempt, v.queue) for v in ready if not v.reason} | {
            (row.id, row.attempt, row.spec.queue) for row in held if row.is_ahead
        }

    def _free(self) -> dict[tuple[str, str], int]:
        """Return (process, queue) → bodies it has started so far, for queues in which it has a free slot."""
        return {
            (life, queue): self.audit.starts(life)
            for name in self.living()
            if (process := self._processes[name]).started.is_set() and not process.stop.is_set()
            for life in (process.life,)
            for queue, slots in self.shape.slots.items()
            if self.audit.busy(life, queue) < slots
        }

    async def settle(self) -> None:
        """Wait until every task has ended, answering those that are parked; check all promises.

        Raises:
            BrokenPromise: one of them is broken, or something never ends.
        """
        deadline_s = self.loop.time() + END_S
        quiet = 2 * bool(self.shape.schedules)  # rounds in which what is due has to fire
        while (quiet or self.truth.counts().wait()) and self.loop.time() < deadline_s:
            quiet = max(0, quiet - 1)
            self.nudge()
            await self.check_no_slot_is_wasted()
            self.audit.check_late(2 * QUIET_S)
        kept = len(self.truth._rows.asks.signals)  # noqa: SLF001 - nothing else shows them
        self.audit.check_all(wall_us=self.loop.now_us(), late_us_max=LATE_US_MAX, kept_signals=kept)

    def _resume_parked(self) -> None:
        parked = self.truth.tasks(states=[State.SUSPENDED], limit=10**6).wait()
        self.truth.resume([view.id for view in parked]).wait()


def steady_us(loop: SimLoop) -> Callable[[], int]:
    """Return a store's clock for a simulation: it does not step when the wall clock does."""
    return lambda: EPOCH_US + round(loop.time() * 1_000_000)
