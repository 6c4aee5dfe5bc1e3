"""Two books of the audit: whose turn it is in each thread, and who may enter a queue, a room or the cache.

Both know only what was handed in and what the store shows of its tasks, never its lines, turns or counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from sennit.errors import QueueFull, ThreadBusy
from sennit.model.lifecycle import State
from sennit.model.task import Claim, Claimed, TaskSpec, TaskView
from sennit.store.memory import MemoryStore
from sennit.store.memory_rows import Row
from sennit.store.protocol import Store

__all__ = ["EntryBook", "TurnBook", "note_claims", "stored_anew"]

_ALL = 10**6
_INTERRUPTS = ("interrupt", "rollback")


def note_claims(
    truth: MemoryStore, note: Callable[[list[Claimed]], object], note_begin: Callable[[Claim], object]
) -> None:
    """Have `note` called with what is claimed, by whomever, inside the transaction that claims it; also when it begins."""
    claim, begin = truth._rows.claim, truth._rows.begin  # noqa: SLF001 - the places that all claims and begins come through

    def noted(
        worker_id: int,
        queue: str,
        n: int,
        *,
        takes: Callable[[str], bool],
        now_us: int,
        is_ahead: bool = False,
    ) -> list[Claimed]:
        tasks = claim(worker_id, queue, n, takes=takes, now_us=now_us, is_ahead=is_ahead)
        note(tasks)
        for task in () if is_ahead else tasks:
            note_begin(task.claim)
        return tasks

    def noted_begin(row: Row, *, now_us: int) -> Claimed:
        task = begin(row, now_us=now_us)
        note_begin(task.claim)
        return task

    truth._rows.claim = noted  # type: ignore[method-assign]  # noqa: SLF001 - see above
    truth._rows.begin = noted_begin  # type: ignore[method-assign]  # noqa: SLF001 - see above


def stored_anew(specs: Sequence[TaskSpec], fresh_ids: Sequence[int]) -> list[TaskSpec]:
    """Return those of a stored batch that are new tasks: no other one stands for them."""
    return [spec for spec, fresh_id in zip(specs, fresh_ids, strict=True) if spec.ref.id == fresh_id]


class TurnBook:
    """The tasks of each thread, in the order they were handed in; one at a time is held, in that order.

    A revived task is next, so it and the others do not count against each other.
    """

    def __init__(self, truth: Store, object_to: Callable[[str], object]) -> None:
        self._truth = truth
        self._object_to = object_to
        self._lines: dict[str, list[int]] = {}
        self._revived: set[int] = set()

    def stored(self, specs: Iterable[TaskSpec]) -> None:
        """Note new tasks."""
        for spec in specs:
            if spec.thread_id is not None:
                self._lines.setdefault(spec.thread_id, []).append(spec.ref.id)

    def revived(self, task_ids: Iterable[int]) -> None:
        """Note that these are next."""
        self._revived.update(task_ids)

    def claimed(self, task: Claimed) -> None:
        """Check a claim, after the transaction it was made in."""
        thread_id = task.thread_id
        if thread_id is None:
            return
        held = [view.id for view in self._truth.tasks(states=[State.RUNNING], thread_id=thread_id, limit=_ALL).wait()]
        if len(held) > 1:
            self._object_to(f"tasks {sorted(held)} of thread {thread_id!r} are held at once")
        line = self._lines.get(thread_id, [])
        if task.id in self._revived or task.id not in line:
            return
        for earlier in line[: line.index(task.id)]:
            if earlier not in self._revived and self._truth.task(earlier).wait().state.live:
                self._object_to(f"task {task.id} started before task {earlier} of its thread, handed in earlier")

    def faults(self) -> list[str]:
        """Say which threads have open tasks and none that has the turn."""
        behind: dict[str, list[bool]] = {}
        for view in self._truth.tasks(limit=_ALL).wait():
            if view.thread_id is not None and view.state.live:
                behind.setdefault(view.thread_id, []).append(view.reason == "thread")
        return [
            f"thread {thread_id!r} has {len(are_behind)} open tasks, and none of them has the turn"
            for thread_id, are_behind in sorted(behind.items())
            if all(are_behind)
        ]


class EntryBook:
    """Who may enter: a queue up to its bound, a room for so many threads, one live task for each cached call.

    Attributes:
        threads_max: the bound that the stores of the fleet were given; 0 is none.
        entered: how many batches with an entry were stored.
    """

    def __init__(
        self, truth: Store, object_to: Callable[[str], object], seen: Counter[str], *, threads_max: int
    ) -> None:
        self._truth = truth
        self._object_to = object_to
        self._seen = seen
        self._standing: dict[tuple[str, str], list[int]] = {}
        self._shed: set[int] = set()
        self.threads_max = threads_max
        self.entered = 0

    def waiting(self, queue: str) -> int:
        """Return how many tasks of a queue wait for a slot, for the turn of their thread, or for room."""
        return len(self._waiting(queue))

    def _waiting(self, queue: str) -> list[TaskView]:
        views = self._truth.tasks(states=[State.READY, State.WAITING], queue=queue, limit=_ALL).wait()
        return [view for view in views if view.state is State.READY or view.reason in {"thread", "threads_max"}]

    def before(self, specs: Sequence[TaskSpec]) -> dict[str, int]:
        """Return how many wait in the bounded queues of a batch before it is applied; whom it interrupts does not count."""
        gone = {spec.thread_id for spec in specs if spec.entry is not None and spec.entry.on_busy in _INTERRUPTS} - {
            None
        }
        queues = sorted({spec.queue for spec in specs if _is_bounded(spec)})
        return {queue: sum(view.thread_id not in gone for view in self._waiting(queue)) for queue in queues}

    def stored(self, specs: Sequence[TaskSpec], fresh: Sequence[TaskSpec]) -> None:
        """Check a batch that was stored; `fresh` are its new tasks."""
        if not any(spec.entry is not None for spec in specs):
            return
        self.entered += 1
        for spec in fresh:
            if spec.entry is not None and _is_bounded(spec) and self.waiting(spec.queue) > spec.entry.queue_max:
                n, most = self.waiting(spec.queue), spec.entry.queue_max
                self._object_to(
                    f"task {spec.ref.id} was stored, and {n} wait in queue {spec.queue!r}, which takes {most}"
                )
        self._check_shed(specs)
        fresh_ids = {spec.ref.id for spec in fresh}
        for spec in specs:
            self._check_cached(spec, is_fresh=spec.ref.id in fresh_ids)

    def _check_shed(self, specs: Sequence[TaskSpec]) -> None:
        for view in self._truth.tasks(states=[State.CANCELLED], limit=_ALL).wait():
            if view.id in self._shed or "was full, and task" not in view.reason:
                continue
            self._shed.add(view.id)
            self._seen["shed"] += 1
            if view.attempt or view.priority <= min(spec.priority for spec in specs):
                self._object_to(
                    f"task {view.id} ({view.priority.name}, attempt {view.attempt}) was shed for no better one"
                )

    def _check_cached(self, spec: TaskSpec, *, is_fresh: bool) -> None:
        if spec.entry is None or not spec.entry.cache_us:
            return
        call = (spec.handler, spec.entry.cache_key)
        standing = self._standing.setdefault(call, [])
        live = [task_id for task_id in standing if self._truth.task(task_id).wait().state.live]
        if is_fresh and live:
            self._object_to(f"task {spec.ref.id} was stored, and task {live[0]} stands for the same call {call}")
        elif is_fresh:
            standing[:] = [spec.ref.id]
        else:
            self._seen["cached"] += 1
            if spec.ref.id not in standing:
                self._object_to(f"task {spec.ref.id} was answered for call {call}, and it is none of {standing}")

    def invalidated(self) -> None:
        """Cached results were dropped: who is open goes on beside a new one."""
        self._standing.clear()

    def refused(self, specs: Sequence[TaskSpec], error: BaseException, before: dict[str, int]) -> None:
        """Check a batch that was not stored."""
        if isinstance(error, QueueFull):
            self._seen["full"] += 1
            wanted = sum(spec.queue == error.queue and _is_bounded(spec) for spec in specs)
            if before[error.queue] + wanted <= error.queue_max:
                self._object_to(f"{error.what}, and {before[error.queue]} were waiting in it")
        if isinstance(error, ThreadBusy):
            self._seen["busy"] += 1
            if not any(self._open_in(spec.thread_id) for spec in specs if spec.thread_id is not None):
                self._object_to(f"{error.what}, and none of its tasks is open")

    def _open_in(self, thread_id: str) -> list[TaskView]:
        return [view for view in self._truth.tasks(thread_id=thread_id, limit=_ALL).wait() if view.state.live]

    def check_room(self) -> None:
        """Check how many threads are ready or running."""
        if self.threads_max:
            views = self._truth.tasks(states=[State.READY, State.RUNNING], limit=_ALL).wait()
            threads = {view.thread_id for view in views if view.thread_id is not None}
            self._seen["room is taken"] += len(threads) == self.threads_max
            if len(threads) > self.threads_max:
                self._object_to(f"threads {sorted(threads)} are ready or running, and {self.threads_max} have room")


def _is_bounded(spec: TaskSpec) -> bool:
    """Return whether this task may find its queue full."""
    return spec.entry is not None and spec.entry.queue_max > 0 and not spec.parents and spec.parent_id is None
