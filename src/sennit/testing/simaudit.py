"""The audit of a simulated fleet: sees every write as it is applied and every body as it starts, and objects.

It keeps its own books beside the store's, so a store or a dispatcher that lies is found out. A broken promise ends the
simulation at once, also when it is found inside a body, whose errors are the worker's business.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, NoReturn

from sennit.errors import BrokenPromise
from sennit.model.lifecycle import State
from sennit.model.task import Claim, Claimed, Ending, Ref, Succeeded, TaskView
from sennit.store.protocol import Store
from sennit.testing.simagents import AgentBook
from sennit.testing.simbooks import NO_LIMITS, KeyBook, TimeBook, Times
from sennit.testing.simcron import CronBook
from sennit.testing.simeffects import EffectBook
from sennit.testing.simtalkbooks import AskBook, StateBook
from sennit.testing.simturns import EntryBook, TurnBook

__all__ = ["Audit", "Planned"]


@dataclass(frozen=True, slots=True)
class Planned:
    """What the audit knows of a submitted task: its parents, their policy, how many children each of its calls makes.

    Attributes:
        parents: what the ids of the parents are in; those of tasks with a key are final when they are stored.
        children: those without a key; one with a key may turn out to be somebody else's.
    """

    parents: tuple[Ref, ...]
    policy: str
    children: int
    times: Times = NO_LIMITS


@dataclass(slots=True)
class _Running:
    """Bodies of one process that run now, by claim."""

    queues: dict[Claim, str] = field(default_factory=dict)
    has_waited: set[Claim] = field(default_factory=set)
    waits: set[Claim] = field(default_factory=set)
    starts: int = 0


class Audit:
    """The books of one fleet.

    Args:
        truth: a connection to its store that answers at once.
        loop: ends with an error when a promise is broken.
    """

    def __init__(self, truth: Store, loop: asyncio.AbstractEventLoop, *, threads_max: int = 0) -> None:
        self._truth = truth
        self._loop = loop
        self.seen: Counter[str] = Counter()
        self.claims: list[Claimed] = []
        self.begins: set[Claim] = set()  # as the store has recorded them
        self._bodies: set[Claim] = set()
        self.plans: dict[int, Planned] = {}
        self.keys = KeyBook(self.view, self.object)
        self.times = TimeBook(loop.time, self.object)
        self.cron = CronBook(self.object)
        self.turns = TurnBook(truth, self.object)
        self.states = StateBook(truth, self.object, self.seen)
        self.asks = AskBook(truth, self.object, self.seen)
        self.agents = AgentBook(truth, self.object, self.seen)
        self.entries = EntryBook(truth, self.object, self.seen, threads_max=threads_max)
        self.revived: set[int] = set()
        self.effects = EffectBook(self.object, self.revived, self.seen)
        self.accepted: dict[Claim, str] = {}
        self.refused = 0
        self._moved_s: dict[Claim, float] = {}
        self._saved: dict[tuple[int, bytes], int] = {}
        self._running: dict[str, _Running] = {}
        self._met: Counter[tuple[int, int]] = Counter()

    def object(self, what: str) -> NoReturn:
        """Say that a promise is broken, here and, since a worker catches what its bodies raise, on the loop."""
        fault = BrokenPromise(what)
        self._loop.call_soon(_raise, fault, context=Context())  # an empty context belongs to the main process
        raise fault

    def view(self, task_id: int) -> TaskView:
        """Return a task as it is stored now."""
        return self._truth.task(task_id).wait()

    # ------------------------------------------------------------ writes, as they are applied

    def holds(self, claim: Claim) -> bool:
        """Return whether this attempt is the one that may write."""
        view = self.view(claim.task_id)
        return view.state is State.RUNNING and view.attempt == claim.attempt and claim not in self.accepted

    def before_endings(self, endings: Sequence[Ending]) -> list[bool]:
        """Return which endings ought to be accepted."""
        return [self.holds(ending.claim) for ending in endings]

    def after_endings(self, endings: Sequence[Ending], held: Sequence[bool], accepted: Sequence[bool | None]) -> None:
        """Check and note which were; None is one that is to be made anew."""
        for ending, may, did in zip(endings, held, accepted, strict=True):
            if did is None:
                self._is_late(ending, held=may)
                continue
            self._moved_s.pop(ending.claim, None)
            if did and ending.claim in self.accepted:
                self.object(f"{ending.claim} ended twice: {self.accepted[ending.claim]}, then {ending}")
            if may != did:
                self.object(f"{ending} was {'refused' if may else 'accepted'}, and the attempt is {_held(may)}")
            if did:
                self.accepted[ending.claim] = type(ending).__name__
                self.times.ended(ending.claim, getattr(ending, "error", None))
            else:
                self.refused += 1

    def _is_late(self, ending: Ending, *, held: bool) -> None:
        """An ending is to be made anew: one that writes to a thread, of an attempt that is held and stays so."""
        if not held or not self.holds(ending.claim) or not isinstance(ending, Succeeded) or not ending.writes:
            self.object(f"{ending} was found too late, and the attempt is {_held(held)}")
        self._moved_s[ending.claim] = self._loop.time()

    def check_late(self, patience_s: float) -> None:
        """Check that no attempt was told that its writes are late, and has not come back with new ones."""
        for claim, at_s in self._moved_s.items():
            if self._loop.time() - at_s > patience_s and self.holds(claim):
                self.object(f"{claim} was too late for the state it writes to, and has not tried again")

    def after_commit(self) -> None:
        """Check what was claimed."""
        if self.claims:
            while self.claims:
                self.turns.claimed(self.claims.pop(0))
            self.entries.check_room()

    def after_step(self, claim: Claim, result: bytes, *, held: bool, accepted: bool) -> None:
        """Check and note a saved step."""
        if held != accepted:
            self.object(
                f"a step of {claim} was {'accepted' if accepted else 'refused'}, and the attempt is {_held(held)}"
            )
        if accepted:
            self._saved.setdefault((claim.task_id, result), claim.attempt)
        else:
            self.refused += 1

    # ------------------------------------------------------------ bodies

    def step_runs(self, claim: Claim, result: bytes) -> None:
        """A step is computed: no earlier attempt may have saved it, though a zombie may compute one in vain."""
        attempt = self._saved.get((claim.task_id, result))
        if attempt is not None and attempt < claim.attempt:
            self.object(f"{claim} computes {result!r} again, which attempt {attempt} had saved")

    def first_time(self, task_id: int, move: int) -> bool:
        """Return whether this move of a task's body is met for the first time."""
        self._met[task_id, move] += 1
        return self._met[task_id, move] == 1

    @contextmanager
    def body(
        self,
        process: str,
        task: Claimed,
        inputs: Sequence[Any],
        *,
        slots: int,
        is_sync: bool,
        freezes: Callable[[], int],
    ) -> Iterator[None]:
        """A body runs in this block."""
        running = self._running.setdefault(process, _Running())
        self._check_begin(process, task.claim)
        self._check_parents(task, inputs)
        times = self.plans[task.id].times if task.id in self.plans else NO_LIMITS
        self.times.begin(task.claim, times, is_sync=is_sync, freezes=freezes())
        running.starts += 1
        running.queues[task.claim] = task.queue
        fresh = sum(queue == task.queue and claim not in running.has_waited for claim, queue in running.queues.items())
        if fresh > slots:  # one that has waited lent its slot, and may go on before the borrower ends
            self.object(f"{process} runs {fresh} bodies in the {slots} slots of queue {task.queue!r}")
        try:
            yield
        finally:
            self.is_out(process, task.claim, freezes=freezes())

    def is_given_up(self, process: str, task: Claimed, *, freezes: int) -> None:
        """A body was given up: it goes on, but has no slot."""
        self.is_out(process, task.claim, freezes=freezes)

    def is_out(self, process: str, claim: Claim, *, freezes: int) -> None:
        """A body has ended."""
        running = self._running[process]
        for kept in (running.has_waited, running.waits):
            kept.discard(claim)
        running.queues.pop(claim, None)
        self.times.out(claim, freezes=freezes)

    @contextmanager
    def waiting(self, process: str, task: Claimed) -> Iterator[None]:
        """A body waits for other tasks in this block."""
        running, claim = self._running[process], task.claim
        running.has_waited.add(claim)
        running.waits.add(claim)
        try:
            yield
        finally:
            running.waits.discard(claim)

    def busy(self, process: str, queue: str) -> int:
        """Return how many slots of a queue bodies hold that are not waiting."""
        running = self._running.get(process, _Running())
        return sum(q == queue and claim not in running.waits for claim, q in running.queues.items())

    def starts(self, process: str) -> int:
        """Return how many bodies a process has started."""
        return self._running.get(process, _Running()).starts

    def _check_begin(self, process: str, claim: Claim) -> None:
        """A body begins once, and not before the store has recorded that it does."""
        if claim in self._bodies:
            self.object(f"{process} begins {claim}, and it has begun before")
        if claim not in self.begins:
            self.object(f"{process} begins {claim}, and that is not recorded")
        self._bodies.add(claim)

    def _check_parents(self, task: Claimed, inputs: Sequence[Any]) -> None:
        plan = self.plans.get(task.id)
        if plan is None or task.id in self.revived:
            return
        for parent_id, value in zip((parent.id for parent in plan.parents), inputs, strict=True):
            state = self.view(parent_id).state
            if parent_id in self.revived:
                continue  # it may have ended otherwise when this task was claimed
            if state is State.SUCCEEDED:
                if value is None or value["task"] != parent_id:
                    self.object(f"task {task.id} got {value} for the result of task {parent_id}")
            elif plan.policy != "run" or state.live:
                self.object(f"task {task.id} ({plan.policy}) started while its parent {parent_id} is {state}")

    # ------------------------------------------------------------ the end

    def check_all(self, *, wall_us: int, late_us_max: int, kept_signals: int) -> None:
        """Check the whole store, when everything has ended; schedules may be `late_us_max` late, signals be kept."""
        ledger, views = self._truth.ledger().wait(), self._truth.tasks(limit=10**6).wait()
        faults = [*self._truth.verify().wait()]
        if not ledger.balanced:
            faults.append(f"the ledger does not balance: {ledger}")
        if ledger.submitted != len(views):
            faults.append(f"{ledger.submitted} tasks were submitted and {len(views)} are stored")
        known = {view.id for view in views}
        faults += [f"task {task_id} was acknowledged and is gone" for task_id in self.plans if task_id not in known]
        faults += [f"task {v.id} is {v.state} for ever: {v}" for v in views if v.state.live]
        for view in views:
            faults += self._faults_of(view)
        faults += self._faults_of_families(views)
        faults += self.keys.faults(views)
        faults += self.turns.faults()
        faults += self.states.faults(views)
        faults += self.asks.faults(views, kept=kept_signals)
        faults += self.agents.faults(views)
        faults += self.effects.faults(views)
        faults += self.cron.faults(now_us=wall_us, late_us_max=late_us_max)
        if faults:
            raise BrokenPromise("; ".join(faults))

    def _faults_of(self, view: TaskView) -> Iterator[str]:
        kinds = [kind for claim, kind in self.accepted.items() if claim.task_id == view.id]
        wanted = int(view.state is State.SUCCEEDED)
        if kinds.count(Succeeded.__name__) != wanted:
            yield f"task {view.id} is {view.state} and {kinds.count(Succeeded.__name__)} successes were accepted"
        elif wanted and self.accepted.get(Claim(view.id, view.attempt)) != Succeeded.__name__:
            yield f"the result of task {view.id} is not of its last attempt {view.attempt}"

    def _faults_of_families(self, views: Iterable[TaskView]) -> Iterator[str]:
        families = Counter(view.parent_id for view in views if view.id not in self.keys.ever)
        for view in views:
            plan = self.plans.get(view.id)
            if plan is not None and view.state is State.SUCCEEDED and families[view.id] != plan.children:
                yield f"task {view.id} made {plan.children} children and {families[view.id]} are stored"


def _raise(fault: BrokenPromise) -> None:
    raise fault


def _held(held: bool) -> str:  # noqa: FBT001 - a word for a fact
    return "held" if held else "not held any more"
