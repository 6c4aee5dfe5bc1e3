"""The worker: one claimed attempt, from hand-over to ending.

    start(task) ─► placed ─► body on the loop | in an OS thread | in a process ─► verdict ─► on_ended(ending, claim)

Four things can cut a body short: a time-out, the store (cancelled, lease lost), a lease that cannot be renewed and a stop
of the process. All go through `_interrupt`, once per attempt: the first reason stands. An async body gets a cancellation, a sync body an
exception raised in its OS thread, the process of one that runs in a process is killed; a body that was moved there without
being told unwinds first, as before.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from sennit.errors import AttemptCancelled, BodyFailed, PayloadError, PayloadTooLarge
from sennit.execute import overspent
from sennit.execute.body import Runtime
from sennit.execute.cluster import CpuPool
from sennit.execute.lag import timed
from sennit.execute.missing import Missing
from sennit.execute.placement import Place, Placement
from sennit.execute.pool import BodyPool
from sennit.execute.processes import Job
from sennit.execute.rebase import Rebases
from sennit.execute.running import Running
from sennit.execute.timeouts import Timeouts
from sennit.execute.verdict import Judge, unwound
from sennit.model.order import Priority
from sennit.model.provider import Budget
from sennit.model.retry import NOT_A_RESULT, Returned
from sennit.model.task import Claim, Claimed, Ending, GivenBack, Succeeded
from sennit.sync.forks import end_forked_child

_log = logging.getLogger("sennit")

# A body that does not react to its interrupt (blocked in C code, or it swallows the cancellation) is given up after
# this long: it is left to end by itself, its late result is dropped.
ABANDON_S = 5.0

# In a worker process: runs a body that nobody has declared for it, and notices when it asks for its attempt.
_MOVED_RUNNER = "sennit.submit.moved:run_moved"


class Worker:
    """Implements `schedule.Runner`. All methods belong to its event loop.

    Args:
        on_ended: told how each attempt ended, and which; None when the store knows already.
        on_start: told of each attempt that is to run.
        on_lag: told for how long each step of an async body kept the event loop, in seconds.
        missing_s: how long a task whose handler is unknown is kept for a worker that knows it.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        on_ended: Callable[[Ending | None, Claim], None],
        pool: BodyPool,
        processes: CpuPool,
        placement: Placement,
        size_bytes_max: int,
        missing_s: float,
        lag_notice_s: float,
        random: Random,
        on_start: Callable[[Claimed], None] | None = None,
        on_lag: Callable[[float], None] | None = None,
    ) -> None:
        self._runtime = runtime
        self._on_ended = on_ended
        self._pool = pool
        self._processes = processes
        self._placement = placement
        self._size_bytes_max = size_bytes_max
        self._missing = Missing(runtime.now_us, missing_s)
        self._lag_notice_s = lag_notice_s
        self._on_start = on_start
        self._on_lag = on_lag
        self._judge = Judge(runtime.now_us, random)
        self._rebases = Rebases(self._judge, pool)
        self._loop = asyncio.get_running_loop()
        self._timeouts = Timeouts(runtime, processes, self._interrupt)
        self._running: dict[Claim, Running] = {}
        self._pressed: dict[str, Running] = {}  # queue → who was asked to make room there
        self._at_last_beat: frozenset[Claim] = frozenset()
        self._pid = os.getpid()

    # ------------------------------------------------------------ starting

    def start(self, task: Claimed) -> None:
        """Run an attempt."""
        if self._on_start is not None:
            self._on_start(task)
        body = self._runtime.find(task.handler)
        if body is None:
            self._on_ended(self._missing.ending(task), task.claim)
            return
        if task.spent is not None:
            self._on_ended(self._overspent(task, overspent.begin(task)), task.claim)
            return
        running = Running(task, body)
        self._running[task.claim] = running
        self._timeouts.arm(running)
        self._launch(running)

    def _launch(self, running: Running) -> None:
        place = self._placement.place_of(running.task, running.body)
        match place:
            case Place.LOOP:
                running.future = self._loop.create_task(self._run_async(running))
            case Place.PROCESS:
                running.future = self._loop.create_task(self._run_cpu(running))
            case Place.MOVED:
                running.future = self._loop.create_task(self._run_cpu(running, _MOVED_RUNNER))
            case _:
                running.lane = self._placement.lane(running.body, place)
                if running.lane is None:
                    self._submit_sync(running)
                else:
                    running.lane.enter(running, partial(self._let_in, running, place))

    def _let_in(self, running: Running, place: Place) -> None:
        """It has come to its place in a lane, unless more is known by now."""
        if self._placement.place_of(running.task, running.body) is place:
            self._submit_sync(running)
        else:
            self._leave_lane(running)
            self._launch(running)

    def _leave_lane(self, running: Running) -> None:
        lane, running.lane = running.lane, None
        if lane is not None:
            lane.withdraw(running)
            lane.leave(running)

    def _submit_sync(self, running: Running) -> None:
        running.measured = self._placement.begins(running.body)
        call = partial(contextvars.copy_context().run, partial(self._run_sync, running))
        running.ticket = self._pool.submit(call, partial(self._sync_done, running))

    def _overspent(self, task: Claimed, ending: Ending | Budget) -> Ending:
        if isinstance(ending, Budget):
            self._runtime.raise_budget(ending)
            return GivenBack(task.claim)
        return ending

    # ------------------------------------------------------------ running

    async def _run_async(self, running: Running) -> None:
        task, body = running.task, running.body
        try:
            with self._runtime.scope(task) as scope:
                running.entered(scope)
                args, kwargs = body.codec.decode(task.payload, task.parents)
                value = await timed(body.function(*args, **kwargs), self._note_lag(task))
        except BaseException as error:  # noqa: BLE001 - SystemExit must not end the loop; the verdict names it
            self._raised(running, error)
        else:
            self._returned(running, value)

    def _note_lag(self, task: Claimed) -> Callable[[float], None]:
        on_lag = self._on_lag

        def note(step_s: float) -> None:
            if on_lag is not None:
                on_lag(step_s)
            if step_s > self._lag_notice_s:
                _log.warning(
                    "task %d (%s) kept the event loop for %.2f s, and all other async bodies with it; "
                    "await what it waits for, or make it a plain `def` (OS thread) or cpu=True (process)",
                    task.id, task.handler, step_s,
                )  # fmt: skip

        return note

    def _run_sync(self, running: Running) -> Any:
        """In an OS thread of the pool."""
        task, body = running.task, running.body
        with self._runtime.scope(task) as scope:
            running.entered(scope)
            args, kwargs = body.codec.decode(task.payload, task.parents)
            if running.measured is None:
                return body.function(*args, **kwargs)
            meter = self._placement.meter(body)
            meter.start()
            try:
                return body.function(*args, **kwargs)
            finally:
                running.sample = meter.stop()

    def _sync_done(self, running: Running, value: Any, error: BaseException | None) -> None:
        if error is not None:
            self._raised(running, error)
        else:
            self._returned(running, value)

    async def _run_cpu(self, running: Running, runner_ref: str = "") -> None:
        task, body = running.task, running.body
        try:
            with self._runtime.scope(task) as scope:  # nothing in the process sees it; it is one call of its provider
                running.entered(scope)
                payload = body.codec.filled(task.payload, task.parents)
                if runner_ref:
                    payload = self._placement.stamp(body) + payload
                running.job = Job(body.reference, payload, runner_ref)
                result = self._checked_size(task, await self._processes.run(running.job))
        except BaseException as error:  # noqa: BLE001 - the verdict names it
            if runner_ref and running.reason is None and self._placement.is_misplaced(body, error):
                running.job = running.future = running.scope = None
                self._launch(running)
                return
            self._raised(running, error)
        else:
            self._end(running, Succeeded(task.claim, result))

    def _checked_size(self, task: Claimed, result: bytes) -> bytes:
        if len(result) > self._size_bytes_max:
            what = f"the result of handler {task.handler!r}"
            raise PayloadTooLarge(what, size_bytes=len(result), size_bytes_max=self._size_bytes_max)
        return result

    # ------------------------------------------------------------ ending

    def _returned(self, running: Running, value: Any) -> None:
        if os.getpid() != self._pid:
            end_forked_child(None)
        task, policy = running.task, running.body.retry
        if isinstance(value, NOT_A_RESULT):
            self._end(running, self._judge.value(task, policy, value))
            return
        try:
            result = running.body.codec.encode_result(value, self._size_bytes_max)
        except PayloadError as error:
            self._end(running, self._judge.error(task, policy, error))
        else:
            scope = running.scope
            if scope is None:
                self._end(running, Succeeded(task.claim, result))
                return
            ending = Succeeded(task.claim, result, scope.take_children(), scope.writes())
            if ending.writes:
                self._rebases.keep(task, running.body, scope, ending)
            self._end(running, ending)

    def _raised(self, running: Running, error: BaseException) -> None:
        if os.getpid() != self._pid:
            end_forked_child(error)
        task, policy, error = running.task, running.body.retry, unwound(error)
        if running.reason is not None:
            self._end(running, self._judge.interrupted(task, policy, running.reason))
        elif isinstance(error, AttemptCancelled):  # a write of the body was refused
            self._end(running, None)
        elif isinstance(error, BodyFailed) and isinstance(error.original, Returned):
            self._end(running, self._judge.value(task, policy, error.original.value))
        elif (exceeded := overspent.hidden_in(error)) is not None:
            self._end(running, self._overspent(task, overspent.spent(task, exceeded)))
        elif running.scope is not None and (why := running.scope.throttled_by(error)):
            _log.info("task %d (%s) is given back, %s", task.id, task.handler, why)
            self._end(running, GivenBack(task.claim))
        else:
            asks = () if running.scope is None else running.scope.asks()
            self._end(running, self._judge.error(task, policy, error, asks))

    def moved(self, claim: Claim, again: Callable[[Ending], None]) -> None:
        """Make the ending of an attempt anew: its writes came too late for the state of a thread."""
        self._rebases.moved(claim, again)

    def settled(self, claim: Claim) -> None:
        """The end of an attempt is recorded, or refused."""
        self._rebases.settled(claim)

    def _end(self, running: Running, ending: Ending | None) -> None:
        for timer in running.timers:
            timer.cancel()
        if running.watch is not None:
            running.watch.ended(succeeded=running.reason is None and isinstance(ending, Succeeded))
            running.watch = None
        if running.reason == "fenced":  # whatever the body made of that: it was told to write nothing more
            ending = GivenBack(running.task.claim)
        if self._running.pop(running.task.claim, None) is not None:
            if running.measured is not None:
                touched = running.scope is not None and running.scope.is_touched
                self._placement.ended(running.body, running.sample, running.measured, is_touched=touched)
            self._leave_lane(running)
            pressed = self._pressed.pop(running.task.queue, None)
            if pressed is not None:
                pressed.press(False)  # here is the room
            self._on_ended(ending, running.task.claim)

    # ------------------------------------------------------------ waiting for others

    def begin_wait(self, claim: Claim) -> None:
        """The body of this attempt waits for other tasks, or in line for its provider."""
        running = self._running.get(claim)
        if running is None:
            return
        self._leave_lane(running)
        if running.watch is not None:
            running.watch.stand_still()

    def end_wait(self, claim: Claim) -> None:
        """It goes on."""
        running = self._running.get(claim)
        if running is not None and running.watch is not None:
            running.watch.go_on()

    # ------------------------------------------------------------ making room

    def preempt(self, queue: str) -> bool:
        """Have the attempt of `queue` with the lowest priority make room at its next step; False if none can.

        One at a time is asked; of those that are alike, the last one started. A body that waits for others holds no slot.
        """
        if queue in self._pressed:
            return True
        able = [
            running
            for running in reversed(self._running.values())
            if running.task.queue == queue and running.body.preemptible and running.task.priority > Priority.URGENT
            if running.reason is None and not (running.scope is not None and running.scope.waits)
        ]
        if able:
            self._pressed[queue] = chosen = max(able, key=lambda running: running.task.priority)
            chosen.press(True)
        return bool(able)

    # ------------------------------------------------------------ cutting short

    def stop(self, claims: list[Claim], reason: str) -> None:
        """Interrupt these attempts."""
        for claim in claims:
            running = self._running.get(claim)
            if running is not None:
                self._interrupt(running, reason)

    def stop_all(self, reason: str) -> None:
        """Interrupt every attempt."""
        self.stop(list(self._running), reason)

    def compare(self, held: list[Claim]) -> None:
        """Stop what the store does not know as held by us any more.

        Only attempts that ran at the last beat already: one claimed since the store was asked is not in its answer.
        """
        lost = (self._at_last_beat & self._running.keys()) - set(held)
        self.stop(sorted(lost), "stopped")
        self._at_last_beat = frozenset(self._running)

    def give_up_all(self) -> None:
        """Hand back every task whose body does not react; what the bodies still write is refused."""
        for running in list(self._running.values()):
            _log.warning(
                "the body of task %d (%s) did not stop in time; the task is handed back",
                running.task.id,
                running.task.handler,
            )
            if running.ticket is not None:
                self._pool.abandon(running.ticket)
            if running.job is not None:
                self._processes.kill(running.job)
            if running.scope is not None:
                running.scope.is_gone()
            self._end(running, GivenBack(running.task.claim))

    def _interrupt(self, running: Running, reason: str) -> None:
        if running.reason is not None:
            return
        running.reason = reason
        if reason == "stopped" and running.scope is not None:
            running.scope.is_gone()  # the store has ended it
        if reason == "fenced" and running.scope is not None:
            running.scope.fence()  # it may end it any moment, and we would not hear of it
        if running.lane is not None and running.lane.withdraw(running):
            self._raised(running, AttemptCancelled(reason))
        elif running.job is not None:
            self._end_job(running, running.job)
        elif running.future is not None:
            # One that is cancelled before its first step never gets to say that it has ended.
            running.future.add_done_callback(lambda _: self._raised(running, AttemptCancelled(reason)))
            running.future.cancel()
            running.timers.append(self._loop.call_later(ABANDON_S, self._abandon, running))
        elif running.ticket is not None:
            self._pool.interrupt(running.ticket, AttemptCancelled)
            running.timers.append(self._loop.call_later(ABANDON_S, self._abandon, running))

    def _end_job(self, running: Running, job: Job) -> None:
        """A body that was moved unwinds as in an OS thread, and is killed if it does not; a declared one is killed."""
        if job.runner_ref and running.reason != "fenced" and self._processes.interrupt(job):
            running.timers.append(self._loop.call_later(ABANDON_S, self._processes.kill, job))
        else:
            self._processes.kill(job)

    def _abandon(self, running: Running) -> None:
        """A body does not react: leave it, and the OS thread of a sync one, to itself."""
        if running.ticket is not None and not self._pool.abandon(running.ticket):
            return
        if running.scope is not None:
            running.scope.is_gone()
        task = running.task
        _log.warning(
            "the body of task %d (%s) does not react to its interrupt; it is given up, and what it still writes is refused",
            task.id,
            task.handler,
        )
        self._end(running, self._judge.interrupted(task, running.body.retry, running.reason or "stopped"))
