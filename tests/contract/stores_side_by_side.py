"""A machine for hypothesis that drives two stores with the same operations at the same times and compares.

    rule ──► memory ──► answer ┐
        └──► SQLite ──► answer ┴─ equal?      and after every step: the same tasks?

The memory store is the model: small enough to read, checked against the table of moves. Whatever sequence hypothesis
finds in which SQLite does otherwise is a bug in one of them, or a sentence missing in the protocol. `test_store_model`
runs it; its second half, for threads, questions and admission, is there.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sennit.errors import (
    CyclicDependency,
    DuplicateKey,
    QueueFull,
    SennitError,
    SubmitError,
    ThreadBusy,
    UnknownDependency,
)
from sennit.model.admission import Bounds
from sennit.model.lifecycle import State
from sennit.model.task import (
    AttemptView,
    Cancelled,
    Claim,
    Crashed,
    Ending,
    ErrorInfo,
    Failed,
    GivenBack,
    Parked,
    Preempted,
    Ref,
    Retried,
    RouteView,
    Slept,
    Succeeded,
    TaskSpec,
    TaskView,
    WorkerInfo,
)
from sennit.store.memory import MemoryStore
from sennit.store.protocol import Store
from sennit.store.sqlite import SqliteStore
from sennit.sync.ack import Ack
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import BOOM, Recorder, got, running_loop

T = TypeVar("T")

THREADS = "xy"
SECOND_US = 1_000_000
LEASE_US = 40 * SECOND_US
QUEUES = ("q", "r")
ROUTES = ("", "a", "a,b", "=1", "a,=2")
LABELS = (("a",), ())  # of each process

# Which of several policies ended a task first is free, and so is its wording.
POLICIES = frozenset({"parent_failed", "parent_cancelled", "deadline", "queue_timeout"})
REFUSALS = frozenset(
    error.__name__ for error in (UnknownDependency, CyclicDependency, DuplicateKey, ThreadBusy, QueueFull)
)

pick = st.integers(0, 10**6)
seconds = st.integers(1, 20).map(lambda s: s * SECOND_US)
plain = st.fixed_dictionaries(
    {"queue": st.sampled_from(QUEUES), "priority": st.integers(0, 3)},
    optional={
        "thread_id": st.sampled_from(THREADS),
        "delay_us": seconds,
        "queue_timeout_us": seconds,
        "deadline_us": seconds,
        "crashes_max": st.integers(1, 2),
        "route": st.sampled_from(ROUTES),
    },
)
keyed = st.fixed_dictionaries(
    {"key": st.sampled_from("kl"), "on_conflict": st.sampled_from(["existing", "reject", "replace"])},
    optional={"queue": st.sampled_from(QUEUES), "delay_us": seconds},
)
linked = st.fixed_dictionaries(
    {
        "on_parent_failed": st.sampled_from(["fail", "run", "cancel"]),
        "stored": st.lists(pick, max_size=2),
        "inside": st.lists(pick, max_size=2),
    },
    optional={
        "delay_us": seconds,
        "queue": st.sampled_from(QUEUES),
        "thread_id": st.sampled_from(THREADS),
        "route": st.sampled_from(ROUTES),
    },
)
child = st.fixed_dictionaries(
    {"waits_for": st.integers(-3, 10**6), "on_parent_failed": st.sampled_from(["fail", "run", "cancel"])},
    optional={
        "child_key": st.sampled_from("cd"),
        "thread_id": st.sampled_from(THREADS),
        "key": st.sampled_from("kl"),
        "on_conflict": st.sampled_from(["existing", "reject", "replace"]),
    },
)


def why(error: ErrorInfo | None) -> str | None:
    """Return what of a reason both stores must agree on."""
    if error is None:
        return None
    return "policy" if error.kind in POLICIES else "refused" if error.kind in REFUSALS else error.kind


def shown(view: TaskView) -> tuple[Any, ...]:
    """Return what of a task both stores must agree on."""
    error = why(view.error)
    running = (view.worker_id, view.started_us) if view.state is State.RUNNING else None
    reason = view.reason if view.state in (State.SCHEDULED, State.SUSPENDED, State.WAITING) else None
    held_back = view.state is State.READY and bool(view.reason)  # behind a call that waits, what for is free
    counts = (view.attempt, view.failures, view.crashes, view.waiting_for)
    return (
        *(view.id, view.state, view.handler, view.queue, view.priority, view.key, view.thread_id, view.parent_id),
        *(view.created_us, view.due_us, view.done_us, error, running, reason, held_back, counts),
        *(view.provider, view.route),
    )


def sorted_by_text(views: list[RouteView]) -> list[RouteView]:
    """Return views in an order that is that of no store."""
    return sorted(views, key=str)


def past(view: AttemptView) -> tuple[Any, ...]:
    """Return what of an attempt both stores must agree on."""
    return view.attempt, view.outcome, view.worker_id, view.started_us, view.ended_us, why(view.error)


def agree(memory: object, sqlite: object) -> None:
    """Raise AssertionError, showing only what differs."""
    if memory != sqlite:
        if isinstance(memory, list) and isinstance(sqlite, list) and len(memory) == len(sqlite):
            memory, sqlite = zip(*((m, s) for m, s in zip(memory, sqlite, strict=True) if m != s), strict=True)
        raise AssertionError(f"the stores differ\nmemory: {memory}\nSQLite: {sqlite}")


class StoresMachine(RuleBasedStateMachine):
    """Two processes at each store; every operation goes to both."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.next_id = self.next_worker_id = 1
        self.ids: list[int] = []
        self.claims: list[Claim] = []
        self.workers = [0, 0]
        self.stack = ExitStack()
        self.loop = self.stack.enter_context(running_loop())
        self.pairs: list[tuple[Store, ...]] = []

    def open(self, bounds: Bounds) -> None:
        """Open both stores twice; every process enforces the same bounds."""
        folder = Path(tempfile.mkdtemp(prefix="sennit-model-"))
        self.stack.callback(shutil.rmtree, folder)
        now_us = self.clock.now_us
        memory = MemoryStore(now_us=now_us, bounds=bounds)
        for process in range(2):
            sqlite = SqliteStore(folder / "tasks.db", durability="normal", now_us=now_us, bounds=bounds)
            self.pairs.append((memory.connect(), sqlite))
            for store in self.pairs[process]:
                self.stack.callback(store.close)
            self.join_one(process)

    def both(
        self, process: int, call: Callable[[Store], Ack[T]], *, seen: Callable[[T], object] = lambda answer: answer
    ) -> T | str:
        """Do the same at each store and compare what is `seen`; return memory's answer, or the name of the error."""
        answers: list[T | str] = []
        for store in self.pairs[process]:
            try:
                answers.append(got(call(store)))
            except SubmitError:
                answers.append("refused")  # which of several faults is named is free
            except SennitError as error:
                answers.append(type(error).__name__)
        agree(*(answer if isinstance(answer, str) else seen(answer) for answer in answers))
        return answers[0]

    def with_specs(self, process: int, call: Callable[[Store], Ack[T]], *, specs: int) -> T | str:
        """Do a `call` that makes new specs; every store gets Refs of its own, since it may write to them."""
        first_id = self.next_id

        def call_with_the_same_ids(store: Store) -> Ack[T]:
            self.next_id = first_id
            return call(store)

        answer = self.both(process, call_with_the_same_ids)
        self.next_id = first_id + specs
        stored = {view.id for view in got(self.pairs[0][0].tasks(limit=specs)) if view.id >= first_id}
        self.ids += sorted(stored)
        return answer

    def submit(self, process: int, make: Callable[[], list[TaskSpec]], *, batch: int) -> None:
        """Hand in a batch."""
        self.with_specs(process, lambda store: store.submit(make()), specs=batch)

    def spec(self, **options: Any) -> TaskSpec:
        task_id, self.next_id = self.next_id, self.next_id + 1
        return TaskSpec(**{"handler": "h", "queue": "q", "payload": b"%d" % task_id} | options, ref=Ref(task_id))

    # ------------------------------------------------------------ the operations

    @initialize(
        threads_max=st.sampled_from([0, 1, 2]), state_versions=st.sampled_from([1, 2, 20]),
    )  # fmt: skip
    def start(self, threads_max: int, state_versions: int) -> None:
        self.open(Bounds(threads_max=threads_max, state_versions=state_versions))

    def join_one(self, process: int) -> None:
        worker = WorkerInfo(
            id=self.next_worker_id, pid=1, host="h", boot_id="b", queues=dict.fromkeys(QUEUES, 1),
            labels=LABELS[process], version=str(process + 1),
        )  # fmt: skip
        self.next_worker_id += 1
        self.workers[process] = worker.id
        self.both(process, lambda store: store.join(worker, Recorder(), self.loop, lease_us=LEASE_US))

    @rule(process=st.integers(0, 1), tasks=st.lists(plain, min_size=1, max_size=4))
    def submit_plain(self, process: int, tasks: list[dict[str, Any]]) -> None:
        self.submit(process, lambda: [self.spec(**options) for options in tasks], batch=len(tasks))

    @rule(process=st.integers(0, 1), options=keyed)
    def submit_keyed(self, process: int, options: dict[str, Any]) -> None:
        self.submit(process, lambda: [self.spec(**options)], batch=1)

    @rule(process=st.integers(0, 1), tasks=st.lists(linked, min_size=1, max_size=5), reverse=st.booleans())
    def submit_graph(self, process: int, tasks: list[dict[str, Any]], *, reverse: bool) -> None:
        def make() -> list[TaskSpec]:
            specs: list[TaskSpec] = []
            for task in tasks:
                options = {k: v for k, v in task.items() if k not in {"stored", "inside"}}
                parents = {self.ids[n % len(self.ids)] for n in task["stored"] if self.ids}
                parents |= {specs[n % len(specs)].ref.id for n in task["inside"] if specs}
                specs.append(self.spec(**options, parents=tuple(Ref(p) for p in sorted(parents))))
            return specs[::-1] if reverse else specs

        self.submit(process, make, batch=len(tasks))

    @rule(process=st.integers(0, 1), queue=st.sampled_from(QUEUES), n=st.integers(1, 4))
    def claim(self, process: int, queue: str, n: int) -> None:
        tasks = self.both(process, lambda store: store.claim(self.workers[process], queue, n))
        assert not isinstance(tasks, str)
        self.claims += [task.claim for task in tasks]

    @precondition(lambda self: self.claims)
    @rule(
        process=st.integers(0, 1),
        which=st.lists(st.tuples(pick, st.sampled_from(["ok", "ok", "fail", "retry", "sleep", "park", "back", "preempt", "crash", "cancel"])), min_size=1, max_size=3),
        after_us=seconds,
    )  # fmt: skip
    def finish(self, process: int, which: list[tuple[int, str]], after_us: int) -> None:
        endings = [self.ending(self.claims[-1 - n % len(self.claims)], how, after_us) for n, how in which]
        self.both(process, lambda store: store.finish(endings))

    @precondition(lambda self: self.claims)
    @rule(process=st.integers(0, 1), which=st.lists(pick, min_size=1, max_size=3), tasks=st.lists(child, max_size=3))
    def finish_with_children(self, process: int, which: list[int], tasks: list[dict[str, Any]]) -> None:
        claims = [self.claims[-1 - n % len(self.claims)] for n in which]

        def children(claim: Claim) -> tuple[TaskSpec, ...]:
            return tuple(self.child(claim, **options) for options in tasks)

        specs = len(claims) * len(tasks)
        self.with_specs(
            process, lambda store: store.finish([Succeeded(c, b"1", children(c)) for c in claims]), specs=specs
        )

    @precondition(lambda self: self.claims)
    @rule(process=st.integers(0, 1), n=pick, tasks=st.lists(child, min_size=1, max_size=3))
    def add_children(self, process: int, n: int, tasks: list[dict[str, Any]]) -> None:
        claim = self.claims[-1 - n % len(self.claims)]
        self.with_specs(
            process,
            lambda store: store.add_children(claim, [self.child(claim, **options) for options in tasks]),
            specs=len(tasks),
        )

    def child(self, claim: Claim, *, waits_for: int, **options: Any) -> TaskSpec:
        """Return a child of an attempt; it may wait for any task, for its own, or for one that is not there."""
        parents = [claim.task_id, 10**12, *self.ids]
        after = () if waits_for < 0 else (Ref(parents[waits_for % len(parents)]),)
        return self.spec(**options, parents=after, parent_id=claim.task_id)

    def ending(self, claim: Claim, how: str, after_us: int) -> Ending:
        due_us = self.clock.now_us() + after_us
        endings: dict[str, Ending] = {
            "ok": Succeeded(claim, b"%d" % claim.task_id),
            "fail": Failed(claim, BOOM),
            "retry": Retried(claim, due_us, BOOM),
            "sleep": Slept(claim, due_us),
            "park": Parked(claim, "ask"),
            "back": GivenBack(claim),
            "preempt": Preempted(claim),
            "crash": Crashed(claim, ErrorInfo(kind="crash")),
            "cancel": Cancelled(claim, "no"),
        }
        return endings[how]

    @precondition(lambda self: self.claims)
    @rule(process=st.integers(0, 1), n=pick, key=st.sampled_from("st"), result=st.sampled_from([b"1", b"2"]))
    def save_step(self, process: int, n: int, key: str, result: bytes) -> None:
        claim = self.claims[-1 - n % len(self.claims)]
        self.both(process, lambda store: store.save_step(claim, key, result))

    @precondition(lambda self: self.ids)
    @rule(
        process=st.integers(0, 1),
        which=st.lists(pick, min_size=1, max_size=4),
        how=st.sampled_from(["cancel", "revive", "resume"]),
    )
    def from_outside(self, process: int, which: list[int], how: str) -> None:
        task_ids = [self.ids[n % len(self.ids)] for n in which]
        self.both(process, lambda store: getattr(store, how)(task_ids))

    @rule(process=st.integers(0, 1), seconds=st.integers(0, 15))
    def time_passes(self, process: int, seconds: int) -> None:
        self.clock.advance(seconds)
        self.both(process, lambda store: store.fire())

    @rule(process=st.integers(0, 1))
    def heartbeat(self, process: int) -> None:
        self.both(process, lambda store: store.heartbeat(self.workers[process], LEASE_US))

    @rule(process=st.integers(0, 1))
    def die_and_start_again(self, process: int) -> None:
        # In this order: the calls of one that leaves and lives go on.
        self.both(1 - process, lambda store: store.rescue(self.workers[process]))
        self.both(process, lambda store: store.leave())
        self.join_one(process)

    @rule(process=st.integers(0, 1), age_us=seconds, limit=st.integers(1, 3))
    def prune(self, process: int, age_us: int, limit: int) -> None:
        self.both(process, lambda store: store.prune(before_us=self.clock.now_us() - age_us, limit=limit))

    # ------------------------------------------------------------ what always holds

    @invariant()
    def both_hold_the_same_tasks(self) -> None:
        agree(*([shown(v) for v in got(store.tasks(limit=10**6))] for store in self.pairs[0]))

    def teardown(self) -> None:
        """What is too slow to look at after every step is looked at after the last: a wrong count stays wrong."""
        try:
            if self.pairs:
                self.compare_the_end()
        finally:
            self.stack.close()

    def compare_the_end(self) -> None:
        self.both(1, lambda store: store.counts())
        self.both(1, lambda store: store.routes(), seen=sorted_by_text)
        self.both_tell_the_same_history()
        self.both_are_sound()

    def both_tell_the_same_history(self) -> None:
        for task_id in self.ids:
            agree(*([past(a) for a in got(store.attempts(task_id))] for store in self.pairs[0]))

    def both_are_sound(self) -> None:
        faults: list[str] | str = self.both(0, lambda store: store.verify())
        agree(faults, [])
        ledger = self.both(0, lambda store: store.ledger())
        assert not isinstance(ledger, str)
        assert ledger.balanced, msgspec.structs.asdict(ledger)
