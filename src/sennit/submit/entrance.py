"""The entrance: a submit that finds its queue full waits outside, in line, and tries again when there is room.

    submit ─► store ─► stored
                └─► QueueFull ─► in line ─► wait_room ─► store ─► …        at most admission_timeout_s

There is one line per queue, and only its head asks the store for room: a hundred blocked submits cost as much as one, and
who came first enters first. Nothing polls: while a submit waits there is one timer, the one that ends the waiting.

What depends on a task that is still outside waits with it, or its parent would be unknown to the store.

A batch enters whole or not at all; but one of more tasks than its queue may ever hold would never enter. It goes in in
parts, one after the other: each is a batch, half as large as the queue, so that workers have the other half meanwhile.
Each part goes to the end of the line, so one large batch does not keep everybody else out; and if one is refused, those
after it are too.
"""

from __future__ import annotations

import threading
from asyncio import AbstractEventLoop, TimerHandle, get_running_loop
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from sennit.errors import QueueFull, SennitError, SubmitError
from sennit.model.task import Ref, TaskSpec
from sennit.store.protocol import Store
from sennit.sync.ack import Ack, call_in, in_event_loop


class Admission:
    """One submit on its way in.

    Attributes:
        ids: as they were given; a try may have set others (`key`), and is forgotten when it is refused.
        line: the queue it stands in line for.
        error: why it is not in yet.
        loop: where its time is kept, from when it stands in line; None for one that blocks its OS thread instead.
        is_over: its time is up: no further try.  tries: one is on its way.
        behind: what waits for this one to be in.  before: how many it waits for itself.
        age: orders the line.
        follows: the part of the same batch before this one; None for a first part, and for a batch that enters whole.
        entered: how many tasks of the batch are in the parts before it.
        refusal: why it has not entered.
    """

    __slots__ = (
        "ack", "age", "before", "behind", "entered", "error", "follows", "ids", "is_over", "is_timed", "line", "loop",
        "refusal", "specs", "store", "timeout_s", "timer", "tries",
    )  # fmt: skip

    def __init__(
        self, store: Store, specs: Sequence[TaskSpec], loop: AbstractEventLoop | None, timeout_s: float
    ) -> None:
        self.store = store
        self.specs = specs
        self.loop = loop
        self.timeout_s = timeout_s
        self.is_timed = False
        self.ids = [spec.ref.id for spec in specs]
        self.ack: Ack[list[int]] = Ack()
        self.line: str | None = None
        self.error: QueueFull | None = None
        self.is_over = False
        self.tries = False
        self.timer: TimerHandle | None = None
        self.behind: list[Admission] = []
        self.before = 0
        self.age = self.ids[0]
        self.follows: Admission | None = None
        self.entered = 0
        self.refusal: Exception | None = None

    def wanted(self, queue: str) -> int:
        """Return how many places it takes in `queue`; what has parents takes none."""
        return sum(1 for spec in self.specs if spec.queue == queue and not spec.parents)

    def waits_for(self, queue: str) -> bool:
        """Return whether it waits for room in `queue`, as all its tasks there must say."""
        return all(
            spec.entry is not None and spec.entry.on_full == "block"
            for spec in self.specs
            if spec.queue == queue and not spec.parents
        )


class Entrance:
    """All submits of one client that may have to wait. Its methods may be called from any OS thread.

    What happens to admissions happens in steps, one at a time, run by whichever OS thread finds none running.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: deque[Callable[[], None]] = deque()
        self._runs = False
        self._outside: dict[Ref, Admission] = {}
        self._lines: dict[str, list[Admission]] = {}

    def submit(self, store: Store, specs: Sequence[TaskSpec], timeout_s: float) -> list[tuple[int, Ack[list[int]]]]:
        """Submit, and wait for room as the entries of `specs` say; blocks unless an event loop runs in this OS thread.

        Returns:
            (number of tasks, ack) of each part, in order; mostly one.

        Raises:
            QueueFull: no room within `timeout_s`, for each part anew (with an event loop: delivered by the acks).
            SubmitError: they are more than the queue may ever hold, or the store refuses them.
        """
        loop = get_running_loop() if in_event_loop() else None
        may_wait = any(_blocks(spec) for spec in specs)
        admissions = [Admission(store, part, loop, timeout_s) for part in (_parts(specs) if may_wait else [specs])]
        for former, part in pairwise(admissions):
            part.follows, part.entered = former, former.entered + len(former.specs)
        with self._lock:
            before = [self._before(admission) for admission in admissions]
            if may_wait or before[0]:
                self._outside.update((spec.ref, admission) for admission in admissions for spec in admission.specs)
        if not may_wait and not before[0]:
            stored = store.submit(specs)
            if loop is None:
                stored.result()
            return [(len(specs), stored)]
        try:
            for admission, others in zip(admissions, before, strict=True):
                admission.before = len(others)
                self._do(partial(self._enter, admission, others))
        except BaseException:  # Ctrl-C, before it waits
            for admission in reversed(admissions):
                self._do(partial(self._give_up, admission))
            raise
        if loop is None:
            self._wait(admissions, timeout_s)
        return [(len(admission.specs), admission.ack) for admission in admissions]

    def _before(self, admission: Admission) -> set[Admission]:
        """Return what must be in before an admission can be: its parents that are outside, and the part before it."""
        known = self._outside
        before = {known[ref] for spec in admission.specs for ref in spec.parents if ref in known} if known else set()
        return before if admission.follows is None else before | {admission.follows}

    @property
    def waiting(self) -> int:
        """How many tasks are not in yet."""
        return len(self._outside)

    def _wait(self, admissions: Sequence[Admission], timeout_s: float) -> None:
        """Block until all are in or the time is up; who is interrupted (Ctrl-C) takes back what is not in yet."""
        for n, admission in enumerate(admissions):
            try:
                admission.ack.result(timeout_s)
            except TimeoutError:
                self._do(partial(self._give_up, admission))
                admission.ack.result()
            except BaseException:
                for part in reversed(admissions[n:]):
                    self._do(partial(self._give_up, part))
                raise

    # ------------------------------------------------------------ steps

    def _do(self, step: Callable[[], None]) -> None:
        """Run a step after those that were asked for before, here or in the OS thread that runs them now."""
        with self._lock:
            self._steps.append(step)
            if self._runs:
                return
            self._runs = True
        try:
            while (following := self._next()) is not None:
                following()
        except BaseException:
            self._runs = False  # the rest is run with the next step
            raise

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if self._steps:
                return self._steps.popleft()
            self._runs = False
            return None

    def _enter(self, admission: Admission, before: set[Admission]) -> None:
        """Try, unless it has to wait for a parent or behind others."""
        for other in before:
            if other.ack.done:
                admission.before -= 1
            else:
                other.behind.append(admission)
        self._go(admission)

    def _go(self, admission: Admission) -> None:
        if admission.before:
            return
        if admission.follows is not None and admission.follows.refusal is not None:
            self._end(admission, admission.follows.refusal)
            return
        queues = dict.fromkeys(spec.queue for spec in admission.specs if _blocks(spec))
        behind = next((queue for queue in queues if queue in self._lines), None)
        if behind is None or admission.is_over:
            self._try(admission)
        else:
            self._stand(admission, behind)

    def _try(self, admission: Admission) -> None:
        if admission.ack.done:
            return
        for spec, task_id in zip(admission.specs, admission.ids, strict=True):
            spec.ref.id = task_id
        admission.tries = True
        self._ask(admission, admission.store.submit, self._tried, admission.specs)

    def _ask(
        self,
        admission: Admission,
        call: Callable[..., Ack[Any]],
        answered: Callable[[Admission, Ack[Any]], None],
        *arguments: Any,
    ) -> None:
        """Call the store; `answered` is a step of its own. A closed store refuses at once."""
        try:
            ack = call(*arguments)
        except SennitError as error:
            ack = Ack.failed_with(error)
        ack.add_done_callback(lambda ack: self._do(partial(answered, admission, ack)))

    def _tried(self, admission: Admission, ack: Ack[list[int]]) -> None:
        admission.tries = False
        try:
            ids = ack.wait()
        except QueueFull as error:
            self._refused(admission, error)
        except Exception as error:  # noqa: BLE001 - handed on to the submitter
            self._end(admission, error)
        else:
            self._end(admission, ids)

    def _refused(self, admission: Admission, error: QueueFull) -> None:
        """The store has no room: wait for it, if that is wanted and there is hope."""
        admission.error = error
        wanted = admission.wanted(error.queue)
        if admission.waits_for(error.queue) and wanted > error.queue_max:
            self._end(admission, _never(error, wanted))
        elif admission.is_over or not admission.waits_for(error.queue):
            self._end(admission, error)
        else:
            self._stand(admission, error.queue)
            if self._lines[error.queue][0] is admission:
                places = error.queue_max - wanted + 1  # fewer than this leave room for all of it
                self._ask(admission, admission.store.wait_room, self._has_room, error.queue, places)

    def _has_room(self, admission: Admission, ack: Ack[None]) -> None:
        try:
            ack.wait()
        except Exception as error:  # noqa: BLE001 - handed on to the submitter
            self._end(admission, error)
        else:
            self._try(admission)

    def _give_up(self, admission: Admission) -> None:
        """Its time is up. A try that is on its way decides for itself."""
        admission.is_over = True
        if admission.before and admission.follows is not None:
            self._end(admission, SubmitError("this part of a batch was taken back"))
        if admission.line is None or admission.tries:
            return
        error = admission.error or self._lines[admission.line][0].error
        if error is not None:  # the head of a line has been refused
            self._end(admission, error)

    # ------------------------------------------------------------ standing in line

    def _stand(self, admission: Admission, queue: str) -> None:
        if admission.line == queue:
            return
        if admission.loop is not None and not admission.is_timed:
            admission.is_timed = True
            call_in(admission.loop, self._arm, admission)
        self._leave(admission)
        admission.line = queue
        line = self._lines.setdefault(queue, [])
        if admission.follows is not None and line:
            admission.age = max(admission.age, line[-1].age)
        # By age: several may have been tried, and refused, at the same time. The head is at it and stays.
        insort(line, admission, lo=min(len(line), 1), key=lambda other: other.age)

    def _leave(self, admission: Admission) -> None:
        """Leave the line; the next head tries."""
        queue, admission.line = admission.line, None
        if queue is None:
            return
        line = self._lines[queue]
        was_head = line[0] is admission
        line.remove(admission)
        if not line:
            del self._lines[queue]
        elif was_head:
            self._do(partial(self._try, line[0]))

    def _end(self, admission: Admission, outcome: list[int] | Exception) -> None:
        """It is in, or refused for good."""
        if admission.ack.done:
            return
        self._leave(admission)
        with self._lock:
            for spec in admission.specs:
                self._outside.pop(spec.ref, None)
        if isinstance(outcome, Exception):
            admission.refusal = outcome = _told(admission, outcome)
            admission.ack.reject(outcome)
        else:
            admission.ack.resolve(outcome)
        if admission.loop is not None and admission.is_timed:
            call_in(admission.loop, self._disarm, admission)
        for other in admission.behind:
            other.before -= 1
            self._do(partial(self._go, other))

    def _arm(self, admission: Admission) -> None:
        """On the submitter's loop: end the waiting in time."""
        if not admission.ack.done and admission.loop is not None:
            step = partial(self._give_up, admission)
            admission.timer = admission.loop.call_later(admission.timeout_s, self._do, step)

    def _disarm(self, admission: Admission) -> None:
        if admission.timer is not None:
            admission.timer.cancel()


def _blocks(spec: TaskSpec) -> bool:
    """Return whether this task may have to wait for room. One with parents never finds its queue full."""
    entry = spec.entry
    return entry is not None and entry.queue_max > 0 and entry.on_full == "block" and not spec.parents


def _parts(specs: Sequence[TaskSpec]) -> list[Sequence[TaskSpec]]:
    """Divide a batch that its queue can never hold, if it may wait; any other is one part.

    Not one that cancels or refuses by thread (`on_busy`): there tasks of one batch are not in each other's way.
    """
    bounds = {spec.queue: spec.entry.queue_max for spec in specs if spec.entry is not None and _blocks(spec)}
    wanted = Counter(spec.queue for spec in specs if not spec.parents)
    large = {queue for queue, most in bounds.items() if wanted[queue] > most}
    if not large or any(_is_whole(spec, large) for spec in specs):
        return [specs]
    parts: list[Sequence[TaskSpec]] = []
    taken: Counter[str] = Counter()
    start = 0
    for n, spec in enumerate(specs):
        if spec.queue not in bounds or spec.parents:
            continue
        if taken[spec.queue] == max(1, bounds[spec.queue] // 2):
            parts.append(specs[start:n])
            start = n
            taken.clear()
        taken[spec.queue] += 1
    return [*parts, specs[start:]]


def _is_whole(spec: TaskSpec, large: set[str]) -> bool:
    """Return whether the batch of this task must enter whole, or not at all."""
    waits = spec.queue not in large or bool(spec.parents) or _blocks(spec)
    return not waits or (spec.entry is not None and spec.entry.on_busy != "enqueue")


def _told(admission: Admission, error: Exception) -> Exception:
    """Return the error of a part that was refused, with how much of the batch has entered."""
    follows = admission.follows
    if follows is None or follows.refusal is not None or not isinstance(error, SennitError):
        return error
    if isinstance(error, QueueFull):  # a new one: others of the line may be told the same one
        error = QueueFull(error.queue, queue_max=error.queue_max, retry_after_s=error.retry_after_s)
    error.why = f"the first {admission.entered:,} tasks of this batch are in, and go on; {error.why}".removesuffix("; ")
    return error


def _never(error: QueueFull, wanted: int) -> SubmitError:
    return SubmitError(
        f"{wanted} tasks at once do not fit queue {error.queue!r}: it takes {error.queue_max}",
        why="because of its on_busy or on_full it enters whole or not at all",
        fix="hand them in in smaller batches, or raise queue_max",
    )
