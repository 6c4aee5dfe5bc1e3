"""A whole fleet on virtual time: real engines and clients on a slow store, killed, frozen and stopped at any moment.

    processes w0 … wn: Engine (dispatcher, slots, worker, attempts) ─► SlowStore ─┐
    main:              Client, and Chaos (submits, cancels, kills, freezes …)   ─► SlowStore ─┼─► one MemoryStore ◄─ Audit

Nothing of the runtime is replaced but what has an OS thread of its own: the heart beats on the loop, and all bodies are
async. What happens to a fleet is drawn in `simchaos`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from sennit.errors import BrokenPromise, StoreError
from sennit.model.lifecycle import State
from sennit.model.settings import Settings
from sennit.model.task import Claim
from sennit.runtime.engine import Engine
from sennit.store.memory import MemoryStore
from sennit.store.protocol import Store
from sennit.submit.client import Client
from sennit.testing.clock import EPOCH_US
from sennit.testing.simaudit import Audit
from sennit.testing.simbodies import HERE, QUEUES, REGISTRY, Here
from sennit.testing.simloop import SimLoop
from sennit.testing.simstore import SlowStore

__all__ = ["Fleet", "Meddle", "Shape", "SimHeart", "steady_us"]

LEASE_S: Final = 3.0
QUIET_S: Final = 5.0
"""Longer than any chain of store calls between a slot that becomes free and the body that takes it."""

STOP_S: Final = 60.0
"""A graceful stop drains for 10 s at most, then hands back what is left."""

END_S: Final = 3600.0
"""All tasks of a seed end within this, once nobody dies any more: retries back off to 8 s, leases are 3 s."""

_SETTINGS: Final = Settings(lease_s=LEASE_S, log_capture=False, loop_lag_notice_s=3600.0, no_worker_notice_s=3600.0)


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
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._on_beat = on_beat
        self._on_trouble = on_trouble
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
            await self._holding.wait()
            await asyncio.sleep(self._lease_s / 3)
            if self._holding.is_set():
                try:
                    held = await self._store.heartbeat(self._worker_id, int(self._lease_s * 1_000_000))
                except StoreError as error:
                    self._on_trouble(error)
                else:
                    self._on_beat(held)


@dataclass(frozen=True, slots=True)
class Shape:
    """What one seed draws for its fleet; times in seconds, virtual."""

    workers: int
    slots: dict[str, int]
    delay_s_max: float
    crash_probability: float
    trouble_probability: float

    @classmethod
    def drawn(cls, random: Random) -> Shape:
        """Draw one."""
        return cls(
            workers=random.randint(1, 4),
            slots={queue: random.randint(1, 3) for queue in QUEUES} | {"cpu": 1},
            delay_s_max=random.choice((0.0, 0.01, 0.3)),
            crash_probability=random.choice((0.0, 0.0, 0.001, 0.005)),
            trouble_probability=random.choice((0.0, 0.0, 0.03)),
        )


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
    """

    def __init__(
        self,
        random: Random,
        loop: SimLoop,
        shape: Shape,
        *,
        truth: MemoryStore,
        meddle: Meddle | None = None,
    ) -> None:
        self.loop = loop
        self.shape = shape
        self.audit = Audit(truth, loop)
        self.truth = truth
        self.is_troubled = True
        self._random = random
        self._meddle = meddle
        self._lives = 0
        self._processes: dict[str, _Process] = {}
        self.store = self._slow_store()
        self.client = Client(lambda: self.store, _SETTINGS, lambda _queue: True)

    @property
    def names(self) -> list[str]:
        """All workers there may be."""
        return [f"w{n}" for n in range(self.shape.workers)]

    def living(self) -> list[str]:
        """Return the workers that live, frozen ones too."""
        return [name for name in self.names if self.loop.is_alive(name)]

    def _slow_store(self) -> SlowStore:
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
        client = Client(lambda: store, _SETTINGS, lambda _queue: True)
        HERE.set(Here(process.life, self.shape.slots, self.audit, client.submit_calls))
        store = process.store = self._slow_store()
        engine = process.engine = Engine(
            store,
            REGISTRY,
            _SETTINGS,
            queues=self.shape.slots,
            schedules=(),
            heart=SimHeart,
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
        return {(v.id, v.attempt, v.queue) for v in self.truth.tasks(states=[State.READY], limit=10**6).wait()}

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
        while self.truth.counts().wait() and self.loop.time() < deadline_s:
            parked = self.truth.tasks(states=[State.SUSPENDED], limit=10**6).wait()
            self.truth.resume([view.id for view in parked]).wait()
            await self.check_no_slot_is_wasted()
        self.audit.check_all()


def steady_us(loop: SimLoop) -> Callable[[], int]:
    """Return a store's clock for a simulation: it does not step when the wall clock does."""
    return lambda: EPOCH_US + round(loop.time() * 1_000_000)
