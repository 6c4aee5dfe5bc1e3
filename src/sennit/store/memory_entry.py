"""May these enter? The memory store's answer, spec by spec, before anything is stored.

    spec ─► stands a cached result for it? ─► is its thread busy? ─► is its queue full? ─► it is to be stored
                                               refuse or cancel       refuse or shed

`Admission` decides on top of what is stored and of what it decided for the specs before, and changes nothing; what it
is to do to others is done by `clear_the_way`, when the whole batch is accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from heapq import nlargest

from sennit.errors import QueueFull, ThreadBusy
from sennit.model.admission import RECENT_ENDS, retry_after_s
from sennit.model.lifecycle import Event, State
from sennit.model.task import ErrorInfo, TaskSpec
from sennit.model.thread import OnBusy
from sennit.store.memory_cache import Cached, Call
from sennit.store.memory_rows import Row, Rows


class Admission:
    """What is decided about one batch.

    Args:
        bounded: False for children, which never find a queue full.
        ending: the task whose success hands the batch in; its thread is not busy with it.
    """

    def __init__(self, rows: Rows, *, now_us: int, bounded: bool = True, ending: int | None = None) -> None:
        self._rows = rows
        self._now_us = now_us
        self._bounded = bounded
        self._ending = ending
        self._gone: set[int] = set() if ending is None else {ending}
        self._freed: Counter[str] = Counter()
        self._added: Counter[str] = Counter()
        self._threads: set[str] = set()
        self._calls: dict[Call, Cached] = {}
        self._interrupted: dict[int, list[Row]] = {}
        self._rolled_back: dict[str, list[Row]] = {}
        self._shed: dict[int, list[Row]] = {}

    def take_away(self, rows: Iterable[Row]) -> None:
        """Note that these tasks will have ended when the batch is stored."""
        for row in rows:
            if row.id not in self._gone and row.state.live:
                self._gone.add(row.id)
                self._freed[row.spec.queue] += row.state is State.READY or row.gated or not self._rows.turns.holds(row)

    # ------------------------------------------------------------ deciding

    def find_cached(self, spec: TaskSpec) -> int | None:
        """Return the task that stands for a call whose result is cached or on its way, or None."""
        call, entry = _call(spec), spec.entry
        if call is None or entry is None:
            return None
        if call in self._calls:
            return self._calls[call].task_id
        row = self._rows.tasks.get(self._rows.cache.find(call) or 0)
        if row is None:
            return None
        is_open = row.state.live and row.id not in self._gone
        is_fresh = row.state is State.SUCCEEDED and (row.done_us or 0) > self._now_us - entry.cache_us
        return row.id if is_open or is_fresh or row.id == self._ending else None

    def admit(self, spec: TaskSpec) -> None:
        """Decide that a spec is to be stored.

        Raises:
            ThreadBusy, QueueFull: see `Entry`.
        """
        self._pass_thread(spec)
        self._pass_queue(spec)
        call = _call(spec)
        if call is not None and spec.entry is not None:
            self._calls[call] = Cached(spec.ref.id, spec.entry.cache_tags)
        self._added[spec.queue] += self._will_wait(spec)
        if spec.thread_id is not None:
            self._threads.add(spec.thread_id)

    def _pass_thread(self, spec: TaskSpec) -> None:
        """Only tasks that are stored already are in the way: those of one batch never interrupt each other."""
        on_busy: OnBusy = "enqueue" if spec.entry is None else spec.entry.on_busy
        busy = self._line(spec.thread_id)
        if on_busy == "enqueue" or not busy or spec.thread_id is None:
            return
        if on_busy == "reject":
            raise ThreadBusy(spec.thread_id, busy[0].id)
        self._interrupted[spec.ref.id] = busy
        if on_busy == "rollback":
            self._rolled_back[spec.thread_id] = busy
        self.take_away(busy)

    def _pass_queue(self, spec: TaskSpec) -> None:
        entry = spec.entry
        if entry is None or not entry.queue_max or spec.parents or not self._bounded:
            return
        too_many = self._load(spec.queue) - entry.queue_max + 1
        if too_many <= 0:
            return
        victims = self._last_below(spec, too_many) if entry.on_full == "shed" else []
        if len(victims) < too_many:
            ends, span_us = recent_ends(self._rows, spec.queue, now_us=self._now_us)
            raise QueueFull(spec.queue, queue_max=entry.queue_max, retry_after_s=retry_after_s(ends, span_us))
        self._shed[spec.ref.id] = victims
        self.take_away(victims)

    def _load(self, queue: str) -> int:
        return self._rows.load(queue) - self._freed[queue] + self._added[queue]

    def _last_below(self, spec: TaskSpec, n: int) -> list[Row]:
        """Return the last `n` in the order that are ready, have never started and have a lower priority than `spec`."""
        rows = (row for row in self._rows.ready.rows(spec.queue) if row.id not in self._gone)
        lower = [row for row in rows if not row.attempt and row.spec.priority > spec.priority]
        return nlargest(n, lower, key=lambda row: (row.order_us, row.id))

    def _will_wait(self, spec: TaskSpec) -> bool:
        """Return whether this new task will wait for a slot or for its turn."""
        if spec.thread_id is not None and (spec.thread_id in self._threads or self._line(spec.thread_id)):
            return True
        parents = (self._rows.tasks.get(ref.id) for ref in spec.parents)
        return not spec.delay_us and not any(parent is None or parent.state.live for parent in parents)

    def _line(self, thread_id: str | None) -> list[Row]:
        """Return the stored tasks of a thread that will still be open."""
        return [row for row in self._rows.turns.line(thread_id or "") if row.id not in self._gone]

    # ------------------------------------------------------------ doing

    def clear_the_way(self, *, versions_max: int) -> None:
        """Cancel who is in the way."""
        for new_id, rows in self._interrupted.items():
            self._cancel(rows, "interrupted", f"task {new_id} was handed in to its thread and interrupts it")
        for thread_id, rows in self._rolled_back.items():
            ids = {row.id for row in rows}
            self._rows.states.roll_back(thread_id, ids, now_us=self._now_us, versions_max=versions_max)
        for new_id, rows in self._shed.items():
            self._cancel(rows, "shed", f"its queue was full, and task {new_id} of a higher priority took its place")

    def _cancel(self, rows: Iterable[Row], kind: str, message: str) -> None:
        live = [row for row in rows if row.state.live]  # one may have ended with one before it
        self._rows.stop(live, Event.CANCEL, ErrorInfo(kind=kind, message=message), now_us=self._now_us)

    def note_calls(self) -> None:
        """Let the new tasks stand for their calls."""
        self._rows.cache.calls.update(self._calls)


def recent_ends(rows: Rows, queue: str, *, now_us: int) -> tuple[int, int]:
    """Return how many of the latest ends in a queue there are, and how long ago the first of them was, µs."""
    ended = (row.done_us for row in rows.tasks.values() if row.done_us is not None and row.spec.queue == queue)
    ends = nlargest(RECENT_ENDS, ended)
    return len(ends), now_us - ends[-1] if ends else 0


def _call(spec: TaskSpec) -> Call | None:
    """Return the name under which the result of a spec is cached, if it is."""
    entry = spec.entry
    return (spec.handler, entry.cache_key) if entry is not None and entry.cache_us > 0 else None
