"""What the contract suite needs around a store: a listener it can wait for, and a `Rig`.

Tests run in plain OS threads and block on acks; listeners are called on an event loop that runs in an OS thread of its
own, as they are in a program with a sync face. So every test reads from top to bottom.
"""

# ruff: noqa: S101 - asserts are what tests are made of

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from sennit.model.lifecycle import State
from sennit.model.provider import (
    Budget,
    BudgetView,
    CallReport,
    Permit,
    PermitRequest,
    ProviderSpec,
    ProviderView,
    Rates,
    Usage,
)
from sennit.model.task import (
    Claim,
    Claimed,
    Ending,
    ErrorInfo,
    Failed,
    OnParentFailed,
    Parked,
    Ref,
    Retried,
    Succeeded,
    TaskSpec,
    TaskView,
    WorkerInfo,
)
from sennit.model.thread import STATE, AskSpec, AskView, StateView, StateWrite
from sennit.store.protocol import Store
from sennit.sync.ack import Ack

T = TypeVar("T")

TIMEOUT_S = 30.0  # how long a fact may take before a test fails; no test waits it out
SECOND_US = 1_000_000
BOOM = ErrorInfo(kind="ValueError", message="boom")
NO_RATES = Rates()
FULL_QUOTA = CallReport(outcome="throttled", status=429, pause="window", retry_after_s=10)

# on_parent_failed → where a dependant without other parents is after its parent failed or was cancelled
POLICIES: dict[OnParentFailed, State] = {"fail": State.FAILED, "cancel": State.CANCELLED, "run": State.READY}

_worker_ids = itertools.count(1)


class Recorder:
    """A listener that keeps what it is told; a test waits for a fact about it."""

    def __init__(self) -> None:
        self.claimed: list[Claimed] = []
        self.stopped: list[Claim] = []
        self.dues_us: list[int] = []
        self.deaths: list[int] = []
        self.pressed: list[str] = []
        self._changed = threading.Condition()

    def on_claimed(self, tasks: list[Claimed]) -> None:
        """Keep what the standing order got."""
        self._keep(self.claimed, tasks)

    def on_stop(self, claims: list[Claim]) -> None:
        """Keep what was taken back."""
        self._keep(self.stopped, claims)

    def on_due(self, due_us: int) -> None:
        """Keep when something is due."""
        self._keep(self.dues_us, [due_us])

    def on_death(self, worker_id: int) -> None:
        """Keep who died."""
        self._keep(self.deaths, [worker_id])

    def on_pressed(self, queue: str) -> None:
        """Keep where it is urgent."""
        self._keep(self.pressed, [queue])

    def _keep(self, kept: list[Any], new: Sequence[Any]) -> None:
        with self._changed:
            kept += new
            self._changed.notify_all()

    def wait_for(self, fact: Callable[[], bool]) -> None:
        """Block until `fact()` holds.

        Raises:
            AssertionError: it does not within TIMEOUT_S.
        """
        with self._changed:
            assert self._changed.wait_for(fact, TIMEOUT_S), f"this did not happen; told so far: {vars(self)}"


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in an OS thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="contract-loop")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def in_threads(n: int, function: Callable[[int], object]) -> None:
    """Run `function(0)` … `function(n - 1)` at once, each in an OS thread of its own; raise the first error.

    Meanwhile the interpreter switches threads as often as it can: without a lock a store must not pass by luck.
    """
    start = threading.Barrier(n)
    interval_s = sys.getswitchinterval()

    def run(k: int) -> None:
        start.wait(TIMEOUT_S)
        function(k)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(n) as pool:
            for future in [pool.submit(run, k) for k in range(n)]:
                future.result()
    finally:
        sys.setswitchinterval(interval_s)


def got(ack: Ack[T]) -> T:
    """Return what an ack brings."""
    return ack.result(timeout_s=TIMEOUT_S)


class Rig:
    """One process at the store under test: a store object, joined as a worker, and short words for what tests do."""

    def __init__(
        self,
        store: Store,
        loop: asyncio.AbstractEventLoop,
        *,
        lease_s: float = 1e6,
        labels: tuple[str, ...] = (),
        version: str = "",
    ) -> None:
        self.store = store
        self.heard = Recorder()
        self.worker_id = next(_worker_ids)
        self.lease_us = round(lease_s * SECOND_US)
        self.worker = WorkerInfo(
            id=self.worker_id, pid=os.getpid(), host="contract", boot_id="contract", queues={"q": 100},
            labels=labels, version=version,
        )  # fmt: skip
        got(store.join(self.worker, self.heard, loop, lease_us=self.lease_us))

    def spec(self, *, after: Sequence[int] = (), parents: tuple[Ref, ...] = (), **options: Any) -> TaskSpec:
        """Return a spec with a fresh id; `after` are ids of stored parents."""
        (task_id,) = self.store.take_ids(1)
        return TaskSpec(
            **{"handler": "work", "queue": "q", "payload": b"[[],{}]"} | options,
            ref=Ref(task_id),
            parents=(*(Ref(i) for i in after), *parents),
        )

    def submit(self, *specs: TaskSpec) -> list[int]:
        """Hand in a batch."""
        return got(self.store.submit(specs))

    def put(self, **options: Any) -> int:
        """Hand in one task; return its id."""
        return self.submit(self.spec(**options))[0]

    def claim(self, n: int = 1, *, queue: str = "q") -> list[Claimed]:
        """Claim at most `n` ready tasks."""
        return got(self.store.claim(self.worker_id, queue, n))

    def start(self, **options: Any) -> Claimed:
        """Hand in one task and claim it, past all others in the queue."""
        return self.run(self.put(**{"priority": 0, **options}))

    def run(self, task_id: int) -> Claimed:
        """Claim the next task, which must be this one."""
        (task,) = self.claim()
        assert task.id == task_id, f"claimed {task.id}, expected {task_id}"
        return task

    def finish(self, *endings: Ending) -> list[bool | None]:
        """Record endings."""
        return got(self.store.finish(endings))

    def succeed(self, task: Claimed, result: bytes = b"1") -> None:
        """End an attempt well."""
        assert self.finish(Succeeded(task.claim, result)) == [True]

    def fail(self, task: Claimed, error: ErrorInfo = BOOM) -> None:
        """End an attempt for good."""
        assert self.finish(Failed(task.claim, error)) == [True]

    def retry(self, task: Claimed, *, after_s: float = 1) -> None:
        """End an attempt to be tried again."""
        due_us = self.store.now_us() + round(after_s * SECOND_US)
        assert self.finish(Retried(task.claim, due_us, BOOM)) == [True]

    def park(self, task: Claimed, *asks: AskSpec) -> None:
        """End an attempt until somebody answers."""
        assert self.finish(Parked(task.claim, "ask", asks)) == [True]

    def ask(self, *asks: AskSpec, **options: Any) -> list[AskView]:
        """Hand in a task, run it and let it ask; return its open questions."""
        task = self.start(**options)
        self.park(task, *asks)
        return got(self.store.asks(task_id=task.id))

    def fire(self) -> int | None:
        """Do what is due."""
        return got(self.store.fire())

    def ended_as(self, state: State) -> int:
        """Hand in a task and bring it to an end; return its id."""
        task = self.start()
        match state:
            case State.SUCCEEDED:
                self.succeed(task)
            case State.FAILED:
                self.fail(task)
            case _:
                got(self.store.cancel([task.id]))
        return task.id

    def view(self, task_id: int) -> TaskView:
        """Return one task as it is now."""
        return got(self.store.task(task_id))

    def state(self, task_id: int) -> State:
        """Return where a task is now."""
        return self.view(task_id).state

    def states(self, *task_ids: int) -> list[State]:
        """Return where several tasks are now."""
        return [self.state(i) for i in task_ids]

    def reason(self, task_id: int) -> tuple[State, str]:
        """Return where a task is now, and why."""
        view = self.view(task_id)
        return view.state, view.reason

    def remembered(self, thread_id: str = "t", name: str = STATE, *, version: int | None = None) -> StateView:
        """Return what a thread remembers."""
        return got(self.store.state(thread_id, name, version=version))

    def write(self, *writes: StateWrite, claim: Claim | None = None) -> list[StateView]:
        """Write versions of states."""
        return got(self.store.write_states(writes, claim=claim))

    # ------------------------------------------------------------ providers

    def provider(self, name: str = "p", parallel: int = 1, *, rates: Rates = NO_RATES, **options: Any) -> ProviderView:
        """Declare a provider with a limit that does not move, and no breaker."""
        plain = {"strategy": "fixed", "breaker": None}
        bounds = msgspec.structs.replace(rates, parallel=parallel)
        return got(self.store.declare_provider(ProviderSpec(**plain | options, name=name, rates=bounds)))

    def pool(self, name: str = "p") -> ProviderView:
        """Return what is known of a provider now."""
        (view,) = got(self.store.providers([name]))
        return view

    def line_up(self, provider: str = "p", **options: Any) -> Ack[Permit]:
        """Ask for a permit, and do not wait for it."""
        (permit_id,) = self.store.take_ids(1)
        return self.store.take_permit(PermitRequest(**{"id": permit_id, "provider": provider, **options}))

    def permit(self, provider: str = "p", **options: Any) -> Permit:
        """Take a permit."""
        return got(self.line_up(provider, **options))

    def give_back(self, permit: Permit, report: CallReport | None = None) -> None:
        """Return a permit that is held."""
        assert got(self.store.return_permit(permit.id, report))

    def waits(self, *acks: Ack[Permit]) -> bool:
        """Return whether none of these requests has an answer, after all has been heard and done that is to be."""
        self.store.look()
        self.fire()
        return not any(ack.done for ack in acks)

    def spend(self, *, tokens: int = 0, cost_nano: int = 0, provider: str = "p", task_id: int | None = None) -> None:
        """Report a call without a permit that has used so much."""
        usage = Usage(input_tokens=tokens, cost_nano=cost_nano)
        got(self.store.report_call(provider, CallReport(usage=usage), task_id=task_id))

    def budget(self, scope: Any, key: str = "", *, tokens: int = 0, cost_nano: int = 0) -> BudgetView:
        """Set a budget."""
        return got(self.store.set_budget(Budget(scope=scope, key=key, tokens_max=tokens, cost_nano_max=cost_nano)))

    def hear_all(self) -> None:
        """Wait until the listener has been told all that came before."""
        (task_id,) = self.submit(self.spec(queue="heard"))
        (task,) = self.claim(queue="heard")
        assert got(self.store.cancel([task_id])) == [True]
        self.heard.wait_for(lambda: task.claim in self.heard.stopped)

    def number(self, state: State, *, queue: str = "q") -> int:
        """Return how many live tasks of a queue are in a state."""
        return got(self.store.counts()).get(queue, {}).get(state, 0)

    def check(self) -> None:
        """Raise AssertionError unless the rows are sound and the ledger balances."""
        assert got(self.store.verify()) == []
        ledger = got(self.store.ledger())
        assert ledger.balanced, ledger
