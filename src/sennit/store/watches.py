"""The results this process waits for.

    ask ─┬─► asked ──an operation──┐
         └─► riding ──any commit───┴─► looked at: ended ─► told
                                                  open  ─► waits ──(it ends)──► told

A task that runs here needs no transaction of its own to be watched: its end, or the news that it was taken from us, is
one, and whoever asked before rides along. That matters because it is the very moment in which its body starts.

What a transaction finds out is told after its commit, and forgotten when it is rolled back. All of it is touched by the
writer's OS thread only, except what `_lock` guards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from sennit.errors import TaskNotFound
from sennit.model.task import Outcome
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves import look
from sennit.store.operations import Look
from sennit.sync.ack import Ack, resolve_all

_LOOKS_MAX = 512  # in one operation: others, in this process and outside, want to write in between

Operation = Callable[[Connection, Effects], None]
Watch = tuple[int, Ack[Outcome]]
Answer = tuple[Ack[Outcome], Outcome | None, BaseException | None]


class Watches:
    """Task id → who waits for its outcome.

    Args:
        put: queues an operation.
        be_known: gives this process a bell, which others ring when something has ended.
    """

    def __init__(self, put: Callable[[Operation], Ack[None]], be_known: Operation) -> None:
        self._put = put
        self._be_known = be_known
        self._lock = threading.Lock()
        self._here: set[int] = set()  # a transaction will follow that concerns these
        self._asked: list[Watch] = []
        self._riding: list[Watch] = []
        self._acks: dict[int, list[Ack[Outcome]]] = {}
        self._unsure: set[int] = set()  # of those that wait: not yet looked at by a transaction that was committed
        self._answers: list[Answer] = []
        self._found: list[tuple[int, Outcome]] = []
        self._looked_us = 0  # what others ended before this is known
        self._looks_us = 0

    @property
    def is_waiting(self) -> bool:
        """True while somebody waits for the end of a task."""
        return bool(self._acks or self._riding)

    # ------------------------------------------------------------ from any OS thread

    def watch(self, task_id: int) -> Ack[Outcome]:
        """Resolve when the task has ended."""
        ack: Ack[Outcome] = Ack()
        with self._lock:
            rides = task_id in self._here
            (self._riding if rides else self._asked).append((task_id, ack))
            is_first = not rides and len(self._asked) == 1
        if is_first:
            self._look_soon()
        return ack

    def _look_soon(self) -> None:
        """Look at many in one operation: one each would spend more on savepoints than on looking."""
        taken: list[Watch] = []

        def operation(connection: Connection, effects: Effects) -> None:
            if not taken:  # else the transaction is run once more
                asked, more = self._take_asked(_LOOKS_MAX)
                taken.extend(asked)
                if more:
                    self._look_soon()
            answers, waiting = _look_at(connection, taken)
            if waiting:
                self._be_known(connection, effects)
            self._answers += answers  # from here on nothing can fail
            for task_id, ack in waiting:
                self._wait(task_id, ack, effects.now_us)

        def looked(done: Ack[None]) -> None:
            try:
                done.wait()
            except Exception as error:  # noqa: BLE001 - handed on to the waiters
                failed = taken or self._take_asked()[0]  # it failed before it could begin
                resolve_all([(ack, None, error) for _, ack in failed])

        self._put(Look(operation)).add_done_callback(looked)

    def go(self, task_ids: Iterable[int]) -> bool:
        """These run here no more; True if somebody rides, and a transaction must follow.

        Called before their end is queued: who asks later comes behind it, who asked before rides with it.
        """
        with self._lock:
            self._here.difference_update(task_ids)
            return bool(self._riding)

    def keep(self, task_ids: Iterable[int]) -> None:
        """Of those that run here only these do, as a transaction has just seen, with which all others ride."""
        with self._lock:
            self._here.intersection_update(task_ids)

    def come(self, task_ids: Iterable[int]) -> None:
        """These run here, and it was committed."""
        with self._lock:
            self._here.update(task_ids)

    def _take_asked(self, n_max: int | None = None) -> tuple[list[Watch], bool]:
        """Return and forget who has asked, the first `n_max`; and whether there are more."""
        with self._lock:
            n = len(self._asked) if n_max is None else n_max
            taken, self._asked = self._asked[:n], self._asked[n:]
            return taken, bool(self._asked)

    # ------------------------------------------------------------ inside a transaction

    def _wait(self, task_id: int, ack: Ack[Outcome], now_us: int) -> None:
        if not self._acks:
            self._looked_us = self._looks_us = now_us
        waiting = self._acks.setdefault(task_id, [])
        if ack not in waiting:  # a transaction that is run once more asks again
            waiting.append(ack)

    def settle_riding(self, connection: Connection, *, now_us: int) -> None:
        """Look at what those who ride along wait for."""
        if self._riding:
            with self._lock:
                riding, self._riding = self._riding, []
            for task_id, ack in riding:
                self._wait(task_id, ack, now_us)
                self._unsure.add(task_id)
        if self._unsure:
            self.settle(connection, self._unsure)

    def settle(self, connection: Connection, task_ids: Iterable[int]) -> None:
        """Look whether these have ended."""
        watched = [task_id for task_id in task_ids if task_id in self._acks]
        if watched:
            self._found += look.ended_of(connection, watched).items()

    def settle_known(self, outcomes: Mapping[int, Outcome]) -> None:
        """These have ended in this transaction."""
        self._found += [(task_id, outcome) for task_id, outcome in outcomes.items() if task_id in self._acks]

    def settle_all(self, connection: Connection) -> None:
        """Look at all that is watched: where transactions commit side by side, none knows since when to look."""
        self.settle(connection, list(self._acks))

    def settle_others(self, connection: Connection, *, now_us: int) -> None:
        """Look at what ended since the last look, in whatever process; not at all that is watched."""
        if self._acks:
            self._looks_us = now_us
            self.settle(connection, [i for i, _ in look.ended_since(connection, self._looked_us)])

    # ------------------------------------------------------------ after it

    def after_commit(self) -> list[Answer]:
        """Return what was found."""
        self._looked_us = self._looks_us
        self._unsure.clear()
        answers, self._answers = self._answers, []
        found, self._found = self._found, []
        for task_id, outcome in found:
            answers += [(ack, outcome, None) for ack in self._acks.pop(task_id, ())]
        return answers

    def after_rollback(self) -> None:
        """Forget what was found; it is found again by the next look."""
        self._looks_us, self._found, self._answers = self._looked_us, [], []

    def fail(self, error: BaseException) -> None:
        """Tell all who wait that nothing will come."""
        with self._lock:
            self._here.clear()
            late, self._asked, self._riding = self._asked + self._riding, [], []
        waiting, self._acks = self._acks, {}
        acks = [ack for acks in waiting.values() for ack in acks] + [ack for _, ack in late]
        resolve_all([(ack, None, error) for ack in acks])


def _look_at(connection: Connection, watches: Sequence[Watch]) -> tuple[list[Answer], list[Watch]]:
    """Return the answers for those that have ended or are unknown, and the others."""
    answers: list[Answer] = []
    waiting: list[Watch] = []
    known = look.outcomes(connection, {task_id for task_id, _ in watches})
    for task_id, ack in watches:
        if task_id not in known:
            answers.append((ack, None, TaskNotFound(task_id)))
        elif (outcome := known[task_id]) is None:
            waiting.append((task_id, ack))
        else:
            answers.append((ack, outcome, None))
    return answers, waiting
