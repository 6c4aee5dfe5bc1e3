"""Many kills -9 at random moments under load, counted by witnesses that do not believe the queue.

    driver ─ submit ─► one SQLite file ◄─ claim, finish ─ three workers ◄─ kill -9, start anew ─ driver
                        └─ trigger: one journal row per ended task, in the very transaction that ended it

What is counted is independent of the ledger: the event log that bodies write, and a journal that a trigger of ours
fills. A task that was recorded as ended twice has two rows there, whatever its one row in the task table says.
tests/project/test_killing.py lets the same counts loose on stores that are broken on purpose.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from harness import END, LOG, RECORD, START, Figures, Hit, Worker, hits, percentile, process_tree, worker_log_tail

if TYPE_CHECKING:
    from collections.abc import Callable

    from sennit.store.protocol import Store

WORKERS: Final = 3
PAUSE_S_MAX: Final = 0.3  # a kill comes at a moment between 0 and this after the fleet is whole again
BOTH_EVERY: Final = 4  # each so many kills a second worker dies within SECOND_S_MAX of the first, amid its rescue
SECOND_S_MAX: Final = 0.03
OPEN_MIN: Final = 300  # the driver keeps at least so many tasks open
FEED: Final = 500
PATIENCE_S: Final = 30.0

# Beside START and END, a body that has a step logs these: inside the step, and once its save was acknowledged.
STEP: Final = 2
SAVED: Final = 3
LOOK_EVERY_S: Final = 0.002

# Fires for every write that ends a task, by whichever process, in its transaction; `attempt` is the accepted one.
JOURNAL: Final = """
create table bench_journal(task_id integer not null, attempt integer not null, state integer not null);
create trigger bench_ended after update on sennit_task when new.state <> 0
begin insert into bench_journal values (new.id, new.attempt, new.state); end;
"""
ENDED: Final = "select id, attempt, state, result from sennit_task where id in (select id from temp.asked)"


class Queue(Protocol):
    """What the driver asks of the side whose workers it kills."""

    def submit(self, n: int) -> list[int]:
        """Submit n tasks whose bodies log their store id and attempt; return the ids, durable."""

    def start_worker(self) -> Worker:
        """Start one more worker process."""


@dataclass(slots=True)
class Fleet:
    """What the driver knows from reading the log: who runs what, and which kills are not made good yet."""

    queue: Queue
    workers: list[Worker]
    submitted: list[int] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    runs: dict[int, int] = field(default_factory=dict)  # task -> pid of the attempt that runs now
    seen: set[int] = field(default_factory=set)  # pids that have run something
    held: list[tuple[int, int]] = field(default_factory=list)  # task that a killed process held, when it was killed, ns
    owed: dict[int, int] = field(default_factory=dict)  # task that a killed process held -> when it was killed, ns
    resumed_s: list[float] = field(default_factory=list)
    _offset: int = 0

    def follow(self) -> None:
        """Read what is new in the log, and keep the queue full."""
        for line in self._new_lines():
            self.seen.add(line.pid)
            if line.kind == END:
                self.runs.pop(line.task_id, None)
                self.ended.add(line.task_id)
            if line.kind != START:
                continue
            self.runs[line.task_id] = line.pid
            killed_ns = self.owed.pop(line.task_id, None)
            if killed_ns is not None:
                self.resumed_s.append((line.at_ns - killed_ns) / 1e9)

    def feed(self) -> None:
        """Submit more when little is open."""
        if len(self.submitted) - len(self.ended) < OPEN_MIN:
            self.submitted += self.queue.submit(FEED)

    def _new_lines(self) -> list[Hit]:
        if not LOG.exists():
            return []
        with LOG.open("rb") as log:
            log.seek(self._offset)
            data = log.read()
        whole = len(data) // RECORD.size * RECORD.size
        self._offset += whole
        return [Hit(*fields) for fields in RECORD.iter_unpack(data[:whole])]

    def wait_until(self, fact: Callable[[], bool], what: str, *, feeding: bool = True) -> None:
        """Follow until `fact` holds.

        Raises:
            TimeoutError: it does not within PATIENCE_S.
        """
        until_s = time.monotonic() + PATIENCE_S
        while not fact():
            if time.monotonic() > until_s:
                message = f"{what} was not so within {PATIENCE_S:.0f} s; the workers wrote:\n{worker_log_tail()}"
                raise TimeoutError(message)
            self.follow()
            if feeding:
                self.feed()
            time.sleep(LOOK_EVERY_S)

    def wait_whole(self) -> None:
        """Wait until all workers work and every task that a kill interrupted runs again."""
        self.wait_until(lambda: not self.owed, "every interrupted task runs again")
        self.wait_until(lambda: all(worker.pid in self.seen for worker in self.workers), "every worker works")

    def kill(self, victim: Worker) -> int:
        """SIGKILL one worker and start another in its place; return how many tasks it held."""
        pids = set(process_tree(victim.pid))
        killed_ns = victim.kill()
        self.follow()  # all that it wrote before its death
        held = [task_id for task_id, pid in self.runs.items() if pid in pids]
        self.held += [(task_id, killed_ns) for task_id in held]
        self.owed |= {task_id: self.owed.get(task_id, killed_ns) for task_id in held}
        for task_id in held:
            del self.runs[task_id]
        self.workers[self.workers.index(victim)] = self.queue.start_worker()
        return len(held)


def run(n: int, queue: Queue, store: Store, *, database: str) -> Figures:
    """Kill n workers one after the other, or two at nearly the same time; then let everything end and count.

    Args:
        store: open, so that the file has its tables.
        database: path of that file.
    """
    clock_ns = store.now_us() * 1000 - time.monotonic_ns()
    chance = random.Random()  # another run, other moments
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        connection.executescript(JOURNAL)
    with ExitStack() as stack:
        fleet = Fleet(queue, [queue.start_worker() for _ in range(WORKERS)])
        stack.callback(lambda: [worker.kill() for worker in fleet.workers])
        held: list[int] = []
        while len(held) < n:
            fleet.wait_whole()
            moment_s = time.monotonic() + chance.uniform(0.0, PAUSE_S_MAX)
            fleet.wait_until(lambda at_s=moment_s: time.monotonic() >= at_s, "the moment")  # type: ignore[misc]
            both = len(held) % BOTH_EVERY == BOTH_EVERY - 1
            first, second = chance.sample(fleet.workers, 2)
            held.append(fleet.kill(first))
            if both:
                time.sleep(chance.uniform(0.0, SECOND_S_MAX))
                held.append(fleet.kill(second))
        fleet.wait_whole()
        fleet.wait_until(lambda: fleet.ended >= set(fleet.submitted), "every task has ended", feeding=False)
        # A body that has ended may not be recorded yet; leaving the `with` kills the workers, so wait for the rows.
        with closing(sqlite3.connect(database, timeout=30)) as connection:
            fleet.wait_until(lambda: _open_rows(connection) == 0, "no row is open", feeding=False)
    return {
        "kills": len(held),
        "n": len(fleet.submitted),
        "held_at_kill": sum(held),
        "resumed_p50_s": percentile(fleet.resumed_s, 0.5),
        "resumed_p99_s": percentile(fleet.resumed_s, 0.99),
        "resumed_worst_s": max(fleet.resumed_s, default=float("nan")),
        **_rescued(database, fleet.held, clock_ns),
        **judge(database, fleet.submitted),
        "promises_broken": len(store.verify().result()),
    }


def _rescued(database: str, held: list[tuple[int, int]], clock_ns: int) -> Figures:
    """Return the time from a kill until its tasks were ready again, as the rows of the crashed attempts tell it."""
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        ended: dict[int, list[int]] = {}
        for task_id, ended_us in connection.execute("select task_id, ended_us from sennit_attempt"):
            ended.setdefault(task_id, []).append(ended_us * 1000 - clock_ns)
    took_s = [
        (min(at_ns for at_ns in ended[task_id] if at_ns > killed_ns) - killed_ns) / 1e9 for task_id, killed_ns in held
    ]
    return {"rescued_p50_s": percentile(took_s, 0.5), "rescued_worst_s": max(took_s, default=float("nan"))}


def _open_rows(connection: sqlite3.Connection) -> int:
    return int(connection.execute("select count(*) from sennit_task where state = 0").fetchone()[0])


def judge(database: str, submitted: list[int]) -> Figures:
    """Count by the log, the journal and the rows what was lost, and what was accepted or run twice.

    - lost: submitted, and not recorded as succeeded by both the row and the journal.
    - accepted_twice: journal rows beyond the first of a task; and attempts that are recorded as accepted and as crashed,
      or whose stored result is that of another attempt.
    - token_run_twice: a claim token (task, attempt) with which two bodies started.
    - ended_but_run_again: the body ended, its process died before that was recorded. At least once is the promise for
      bodies, at most once for what is recorded.
    - saved_step_run_again: a step ran in an attempt after the one that was told it is saved; only if bodies log steps.
    """
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        connection.execute("create temp table asked(id integer primary key)")
        connection.executemany("insert into asked values (?)", [(task_id,) for task_id in submitted])
        rows = {row[0]: row[1:] for row in connection.execute(ENDED)}
        journal = Counter(task_id for (task_id,) in connection.execute("select task_id from bench_journal"))
        crashed = set(connection.execute("select task_id, attempt from sennit_attempt"))
    log = hits()
    starts = Counter((line.task_id, line.attempt) for line in log if line.kind == START)
    ends = Counter(line.task_id for line in log if line.kind == END)
    strange = sum(
        (task_id, attempt) in crashed or result is None or int(result) != attempt
        for task_id, (attempt, state, result) in rows.items()
        if state == 1
    )
    return {
        "lost": sum(rows.get(task_id, (0, 0))[1] != 1 or not journal[task_id] for task_id in submitted),
        "accepted_twice": sum(count - 1 for count in journal.values()) + strange,
        "token_run_twice": sum(count > 1 for count in starts.values()),
        "ended_but_run_again": sum(count > 1 for count in ends.values()),
        **_steps(log),
    }


def _steps(log: list[Hit]) -> Figures:
    """Return how many steps ran again although a former attempt had saved them; nothing where no body has steps.

    A former attempt is what counts, not a former moment: one that was taken back may run its step late, unheard.
    """
    saved: dict[int, int] = {}
    for line in log:
        if line.kind == SAVED:
            saved[line.task_id] = min(line.attempt, saved.get(line.task_id, line.attempt))
    ran = [line for line in log if line.kind == STEP]
    again = sum(line.task_id in saved and line.attempt > saved[line.task_id] for line in ran)
    return {"saved_step_run_again": again} if ran else {}
