"""The engine: the working half of a process, its parts made, started and stopped in order.

start: pools ─► worker ─► dispatcher joins and orders ─► heart ─► schedules
stop:  schedules ─► intake closed ─► bodies drain ─► rest interrupted and handed back ─► leave ─► pools, heart

A start that fails half-way is undone the same way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from random import Random

from msgspec import structs

from sennit.errors import StoreError
from sennit.execute.body import Body, Scope
from sennit.execute.cluster import open_cpu_pool
from sennit.execute.cluster_link import checked_address
from sennit.execute.placement import Placement, cpu_home
from sennit.execute.pool import BodyPool
from sennit.execute.worker import Worker
from sennit.execute.workload import gil_enabled
from sennit.limit.admission import MemoryGate, resident_bytes
from sennit.limit.cgroups import effective_cpus, tightest_memory
from sennit.limit.load import LoadManager
from sennit.limit.shedding import Decision, LoadBounds
from sennit.model.provider import Budget
from sennit.model.route import checked_labels
from sennit.model.settings import Settings
from sennit.model.task import Claim, Claimed, Ending, WorkerInfo
from sennit.observe.capture import LogCapture
from sennit.runtime.fence import Fence
from sennit.schedule.dispatcher import Dispatcher
from sennit.schedule.heart import FENCE_MARGIN, Heart, Pulse
from sennit.schedule.planner import Planned, Planner
from sennit.schedule.slots import Slots
from sennit.store.protocol import Store
from sennit.submit.context import Attempt, current
from sennit.submit.permits import told
from sennit.submit.registry import Registry
from sennit.sync.ack import call_in, in_event_loop
from sennit.sync.clock import boot_id, monotonic_s, wall_us

_log = logging.getLogger("sennit")

# How long interrupted bodies get to unwind before their tasks are handed back without them.
UNWIND_S = 1.0
# Slots bound how many bodies run. A sync body that waits for its children lends its slot to them but keeps its OS
# thread, so the pool must not be a second, narrower bound: parents would hold all of it while their children wait.
OS_THREADS_MAX = 30_000
# How often at most ended tasks are pruned; driven by ends, so an idle process never wakes for it.
PRUNE_EVERY_US = 3600 * 1_000_000


class Engine:
    """Runs tasks of one store in this process, on the running event loop."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        settings: Settings,
        *,
        queues: Mapping[str, int],
        schedules: Sequence[Planned],
        heart: Callable[..., Pulse] = Heart,
        pool: Callable[..., BodyPool] = BodyPool,
        planner: Callable[..., Planner] = Planner,
        random: Random | None = None,
        on_beat: Callable[[], None] = lambda: None,
        on_stop: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._on_stop = on_stop
        self._store = store
        self._on_renewed = on_beat
        self._registry = registry
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self.queues = dict(queues)
        cpu_slots = self.queues.get("cpu", 0) or settings.cpu_slots or usable_cores()
        self._slots = Slots(self.queues)
        self._pool = pool(loop=self._loop, threads_max=OS_THREADS_MAX, result_bursts=settings.result_bursts)
        self._processes = open_cpu_pool(settings, processes_max=cpu_slots)
        has_gil = gil_enabled()  # asked once: an extension that is imported later may switch it on again
        self.placement = Placement(
            settings.placement,
            home=cpu_home(has_cluster=bool(checked_address(settings.cluster)), has_gil=has_gil),
            cores=usable_cores(),
            has_gil=has_gil,
            processes=self._processes,
            no_room=partial(no_room, cpu_slots),
        )
        self._worker = Worker(
            self,
            on_ended=self._ended,
            pool=self._pool,
            processes=self._processes,
            placement=self.placement,
            size_bytes_max=settings.payload_bytes_max,
            missing_s=settings.handler_missing_s,
            lag_notice_s=settings.loop_lag_notice_s,
            random=random or Random(),
            on_start=self._on_start if settings.load_control else None,
            on_lag=self._on_lag if settings.load_control else None,
        )
        me = WorkerInfo(
            id=store.take_ids(1)[0], pid=os.getpid(), host=socket.gethostname(), boot_id=boot_id(), queues=self.queues,
            labels=checked_labels(settings.labels, of_worker=True), version=settings.version,
        )  # fmt: skip
        self.worker_id = me.id
        self._me = me
        self._fence = Fence(
            self._loop,
            self._worker,
            self._processes,
            worker_id=me.id,
            on_change=self._on_fence,
            loop_patience_s=settings.lease_s * FENCE_MARGIN / 4,
        )
        self._heart = heart(
            store,
            me.id,
            lease_s=settings.lease_s,
            on_beat=self._on_beat,
            on_trouble=lambda e: _log.error("heartbeat: %s", e),
            on_fence=self._fence.raise_,
            on_back=self._fence.drop,
        )
        self._dispatcher = Dispatcher(
            store, me, self._slots, self._worker, on_held=self._on_held, claim_ahead=settings.claim_ahead
        )
        self._gate = MemoryGate(
            settings.memory_bytes_max,
            sample=lambda: resident_bytes(self._processes.pids),
            on_change=partial(self._hold_back, "memory_bytes_max"),
            now_s=monotonic_s,
            later=self._loop.call_later,
        )
        self._held_back: set[str] = set()
        self._waited_us: dict[str, int] = {}  # queue → how long the task that was started last had waited for its slot
        self.load = self._load_manager() if settings.load_control else None
        self._planner = planner(store, schedules, wall_us=wall_us)
        self._capture = LogCapture(store, _whose, self._loop) if settings.log_capture else None
        self._pruned_us = 0
        self._pruning: asyncio.Task[None] | None = None
        self._stopping = False

    # ------------------------------------------------------------ starting and stopping

    async def start(self) -> None:
        """Join the store and take work. When that fails nothing of it stays: no order, no row, no OS thread."""
        try:
            if self._capture is not None:
                logging.getLogger().addHandler(self._capture)
            await self._dispatcher.open(lease_us=int(self._settings.lease_s * 1_000_000))
            self._heart.start()
            await self._planner.open()
        except (
            Exception,
            asyncio.CancelledError,
        ):  # what else there is ends the loop, and nothing can be awaited any more
            await self._undo_start()
            raise

    async def _undo_start(self) -> None:
        """Undo what was started, hand back what was claimed meanwhile; what cannot be undone does not keep the rest."""
        self._stopping = True
        drain = partial(self._drain, 0.0)
        try:
            for undo in (self._planner.close, self._dispatcher.close_intake, drain, self._dispatcher.leave):
                try:
                    await undo()
                except StoreError as error:
                    _log.error("undoing a failed start: %s", error)
        finally:
            await self._release()

    async def stop(self, drain_s: float) -> None:
        """Stop: let bodies run for `drain_s`, then hand back what is unfinished without using an attempt up."""
        try:
            if not self._stopping:
                self._stopping = True
                await self._planner.close()
                await self._dispatcher.close_intake()
                if drain_s and self._slots.held:
                    self._describe()
            await self._drain(drain_s)
            if self._capture is not None:
                self._capture.flush()
            await self._dispatcher.leave()
        finally:
            await self._release()

    async def _release(self) -> None:
        """Give up what is of this process only: log handler, pools, heart."""
        self._gate.close()
        if self.load is not None:
            self.load.close()
        if self._capture is not None:
            logging.getLogger().removeHandler(self._capture)
        self._pool.close()
        self.placement.close()
        await self._processes.close()
        await self._loop.run_in_executor(None, self._heart.stop)
        if self._on_stop is not None:
            await self._on_stop()

    async def _drain(self, drain_s: float) -> None:
        if await self._idle_within(drain_s):
            return
        self._worker.stop_all("shutdown")
        if await self._idle_within(UNWIND_S):
            return
        self._worker.give_up_all()
        if not await self._idle_within(self._settings.lease_s):
            # The store does not take the ends (a full disk?). This process is about to go: what it still holds comes
            # back to others as a crash, by its life lock or its lease.
            _log.error(
                "the store took no ends for %g s; %d tasks are left to be rescued",
                self._settings.lease_s,
                self._slots.held,
            )

    async def _idle_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._dispatcher.wait_idle(), seconds)
        except TimeoutError:
            return False
        return True

    def serves(self, queue: str) -> bool:
        """True when this process takes tasks of `queue`."""
        return self._slots.serves(queue) and not self._stopping

    def serve(self, queue: str, slots: int) -> None:
        """Take tasks of one more queue: a handler was registered while this engine runs."""
        call_in(self._loop, self._dispatcher.serve, queue, slots)

    # ------------------------------------------------------------ what surrounds the worker

    def find(self, handler: str) -> Body | None:
        """Return the handler of this name."""
        return self._registry.get(handler)

    def now_us(self) -> int:
        """The store's clock."""
        return self._store.now_us()

    def raise_budget(self, budget: Budget) -> None:
        """Set a new bound, before anything else that this process writes from now on."""
        told(self._store.set_budget(budget), f"raising the budget of {budget.scope} {budget.key!r}")

    def scope(self, task: Claimed) -> AbstractContextManager[Scope]:
        """Open the context of one attempt, in the OS thread that runs the body."""
        return Attempt(
            task,
            self._store,
            size_bytes_max=self._settings.payload_bytes_max,
            thread_bytes_max=self._settings.thread_memory_bytes_max,
            lend=self._on_loop(self._lend, task.claim),
            take_back=self._on_loop(self._take_back, task.claim),
        )

    def _lend(self, claim: Claim) -> None:
        self._worker.begin_wait(claim)
        self._dispatcher.lend(claim)

    def _take_back(self, claim: Claim) -> None:
        self._worker.end_wait(claim)
        self._dispatcher.take_back(claim)

    def _on_loop(self, method: Callable[[Claim], None], claim: Claim) -> Callable[[], None]:
        if in_event_loop():
            return lambda: method(claim)

        def from_os_thread() -> None:
            call_in(self._loop, method, claim)

        return from_os_thread

    def _on_held(self, held: int) -> None:
        """Attempts have started or ended."""
        self._heart.held(held)
        self._gate.note()
        if self.load is not None:
            self.load.note(self._slots.held)

    # ------------------------------------------------------------ load

    def _load_manager(self) -> LoadManager:
        settings = self._settings
        return LoadManager(
            LoadBounds(
                cpu_pressure_max=settings.load_cpu_pressure_max,
                memory_free_min=settings.load_memory_free_min,
                lag_s_max=settings.loop_lag_notice_s,
                queue_age_s_max=settings.load_queue_age_s_max,
            ),
            on_change=self._on_load,
            now_us=lambda: int(monotonic_s() * 1_000_000),
            loop=self._loop,
            queue_age_s=self._queue_age_s,
        )

    def _on_start(self, task: Claimed) -> None:
        if task.ready_us is not None and task.permit is None:  # else it has waited for its provider, too
            self._waited_us[task.queue] = self.now_us() - task.ready_us

    def _queue_age_s(self) -> float:
        """Return how long work waits for a slot here: not at all where one is free, else as long as the last that got one."""
        slots = self._slots.statistics()
        full = [queue for queue, s in slots.items() if s.held - s.lent >= s.allowed]
        return max((self._waited_us.get(queue, 0) for queue in full), default=0) / 1_000_000

    def _on_lag(self, step_s: float) -> None:
        """An async body has kept the loop for so long: if that is too long, do not wait for an attempt to end."""
        if self.load is not None:
            self.load.note_lag(step_s)
            if step_s > self._settings.loop_lag_notice_s:
                self.load.note(self._slots.held)

    def _on_load(self, decision: Decision) -> None:
        self._hold_back("load", decision.after.is_stopped)
        self._dispatcher.scale(decision.after.multiplier)
        if decision.has_fallen and decision.after.level == "shedding":
            self._dispatcher.shed()

    def _hold_back(self, why: str, is_held_back: bool) -> None:  # noqa: FBT001 - by partial
        """Take no further tasks while there is any reason not to."""
        if is_held_back:
            self._held_back.add(why)
        else:
            self._held_back.discard(why)
        self._dispatcher.hold_back(bool(self._held_back))

    def _ended(self, ending: Ending | None, claim: Claim) -> None:
        self._dispatcher.ended(ending, claim)
        now_us = self._store.now_us()
        if now_us - self._pruned_us > PRUNE_EVERY_US:
            self._pruned_us = now_us
            self._pruning = self._loop.create_task(self._prune(now_us))

    async def _prune(self, now_us: int) -> None:
        """Delete what is past its retention, batch by batch, so that others get the writer in between."""
        before_us = now_us - int(self._settings.retention_s * 1_000_000)
        limit = self._settings.retention_batch
        try:
            while not self._stopping and await self._store.prune(before_us=before_us, limit=limit) == limit:
                pass
        except StoreError as error:
            _log.error("pruning ended tasks failed, next try after the next hour: %s", error)

    def _on_fence(self, is_up: bool) -> None:  # noqa: FBT001 - by call_in
        """This process could not renew its lease, or can again."""
        if not self._stopping:
            self._hold_back("fence", is_up)
            if not is_up:
                self._describe()

    def _describe(self) -> None:
        """Tell others how this process is."""
        me = structs.replace(self._me, fenced=self._fence.raised, drains=self._stopping)
        told(self._store.describe(me), "telling others how this worker is")

    def _on_beat(self, held: list[Claim]) -> None:
        """On the heart's OS thread: compare with what runs here, as of before the beat was asked for."""
        self._on_renewed()
        call_in(self._loop, self._worker.compare, held)


def _whose() -> Claim | None:
    attempt = current()
    if attempt is None:
        return None
    attempt.beat()
    return attempt.task.claim


def usable_cores() -> int:
    """Return how many cores this process may use: SENNIT_CPUS, else its affinity within its container's quota."""
    return effective_cpus()


def no_room(processes: int) -> str:
    """Return why so many more processes, each as large as this one, would be too many for half of the free memory."""
    need_bytes, memory = processes * resident_bytes(list), tightest_memory()
    free_bytes = memory.limit_bytes - memory.used_bytes
    if 2 * need_bytes <= free_bytes:
        return ""
    return f"{processes} processes like this one may need {need_bytes >> 20} MB, and {free_bytes >> 20} MB are free"
