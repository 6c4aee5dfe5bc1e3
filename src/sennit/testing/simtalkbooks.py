"""Two books of the audit: what the state of each thread remembers, and what was asked and answered.

The state of a simulated thread is a count and the tags of all updates, in order: {"n": 2, "log": ["7:0", "out 3"]}. So each
version must begin with the one before it, an update that is lost or made twice is seen at once, and `n` is the version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from sennit.errors import AskClosed, AskNotFound, AskStale, SennitError
from sennit.model.task import Succeeded, TaskView
from sennit.model.thread import AskView, Decision
from sennit.store.protocol import Store

__all__ = ["AskBook", "StateBook", "bump"]


def bump(tag: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the update that adds one to the count of a thread, and its tag."""
    return lambda state: {"n": state.get("n", 0) + 1, "log": [*state.get("log", ()), tag]}


class StateBook:
    """What the threads remember: each version is the one before it and one more update.

    Attributes:
        planned: task → the tags that are in the state when it has succeeded.
    """

    def __init__(self, truth: Store, object_to: Callable[[str], object], seen: Counter[str]) -> None:
        self._truth = truth
        self._object_to = object_to
        self._seen = seen
        self._logs: dict[str, list[str]] = {}
        self._versions: dict[str, int] = {}
        self._saved: set[str] = set()
        self._outside: set[str] = set()
        self._taken_back: set[str] = set()
        self.planned: dict[int, list[str]] = {}

    def written(self, thread_ids: Iterable[str], *, saved: bool = False) -> None:
        """Check what a write made of these threads; `saved` says that it stays, whatever becomes of its task."""
        for thread_id in set(thread_ids):
            log, version = self._logs.get(thread_id, []), self._versions.get(thread_id, 0)
            now, now_log = self._look(thread_id)
            if now_log[: len(log)] != log:
                self._object_to(f"thread {thread_id!r} has lost an update: {log} became {now_log}")
            if now - version != len(now_log) - len(log):
                self._object_to(f"thread {thread_id!r} went from version {version} to {now} with {now_log[len(log) :]}")
            if len(set(now_log)) != len(now_log):
                self._object_to(f"thread {thread_id!r} has an update twice: {now_log}")
            if saved:
                self._saved.update(now_log[len(log) :])
            self._logs[thread_id], self._versions[thread_id] = now_log, now

    def interrupted(self, thread_id: str) -> None:
        """Check a thread whose open tasks were rolled back: one version more at most, of what it was before."""
        log, version = self._logs.get(thread_id, []), self._versions.get(thread_id, 0)
        now, now_log = self._look(thread_id)
        if now == version and now_log == log:
            return
        self._seen["rolled back"] += 1
        if now != version + 1 or now_log != log[: len(now_log)]:
            self._object_to(f"thread {thread_id!r} was rolled back from {version}, {log} to {now}, {now_log}")
        self._taken_back.update(log[len(now_log) :])
        self._logs[thread_id], self._versions[thread_id] = now_log, now

    def _look(self, thread_id: str) -> tuple[int, list[str]]:
        view = self._truth.state(thread_id).wait()
        state = msgspec.json.decode(view.data or b"null") or {}
        if state.get("n", 0) != len(state.get("log", ())):
            self._object_to(f"the state of thread {thread_id!r} is {state}")
        return view.version, state.get("log", [])

    def finished(self, ending: Succeeded, accepted: bool | None) -> None:  # noqa: FBT001 - the store's answer
        """Check a success that writes, just after it was applied."""
        if accepted is None:
            self._seen["conflicts"] += 1
        if accepted and ending.writes:
            self.written(write.thread_id for write in ending.writes)

    def acknowledged(self, tag: str) -> None:
        """An update from outside was acknowledged."""
        self._seen["outside updates"] += 1
        self._outside.add(tag)

    def faults(self, views: Sequence[TaskView]) -> Iterator[str]:
        """Say what is missing in the end, and what ought not to be there."""
        succeeded = {view.id for view in views if view.state == "succeeded"}
        wanted = set(self._outside) | self._saved
        for task_id, tags in self.planned.items():
            if task_id in succeeded:
                wanted.update(tags)
        there = {tag for log in self._logs.values() for tag in log}
        wanted -= self._taken_back
        if wanted - there:
            yield f"updates {sorted(wanted - there)} are lost"
        for task_id, tags in self.planned.items():
            if task_id not in succeeded and set(tags) & there - self._saved:
                yield f"task {task_id} has not succeeded, and its updates {tags} are in the state"
        self._seen["saved"] += len(self._saved)


class AskBook:
    """What was asked: closed once, by one answer, and that is what the body sees, however often it runs.

    Attributes:
        signals: payload → (event, how many waits it answered; 0 is kept for the next one).
    """

    def __init__(self, truth: Store, object_to: Callable[[str], object], seen: Counter[str]) -> None:
        self._truth = truth
        self._object_to = object_to
        self._seen = seen
        self._decided: dict[int, Decision] = {}
        self._outcomes: dict[tuple[int, str], Any] = {}
        self.signals: dict[int, tuple[str, int]] = {}

    # ------------------------------------------------------------ decisions

    def before(self, decisions: Sequence[Decision]) -> list[AskView]:
        """Return the asks as they are before they are decided."""
        return [self._truth.ask(decision.ask_id).wait() for decision in decisions]

    def decided(self, decisions: Sequence[Decision], before: Sequence[AskView], error: SennitError | None) -> None:
        """Check and note an answer, or why there was none."""
        closed = any(view.state != "open" for view in before)
        stale = any(d.version not in (None, view.version) for d, view in zip(decisions, before, strict=True))
        self._seen[type(error).__name__ if error else "decided"] += 1
        if error is None and (closed or stale):
            self._object_to(f"{decisions} were accepted, and the asks were {before}")
        if isinstance(error, AskClosed) and not closed:
            self._object_to(f"{error.what}, and the asks were {before}")
        if isinstance(error, AskStale) and not stale:
            self._object_to(f"{error.what}, and the asks were {before}")
        if error is None:
            for decision in decisions:
                if decision.ask_id in self._decided:
                    self._object_to(f"ask {decision.ask_id} was decided twice")
                self._decided[decision.ask_id] = decision

    # ------------------------------------------------------------ bodies

    def seen(self, task_id: int, key: str, outcome: Any) -> None:
        """A body has what came of its question: always the same, and what is recorded."""
        before = self._outcomes.setdefault((task_id, key), outcome)
        if before != outcome:
            self._object_to(f"task {task_id} saw {before} for {key!r}, and then {outcome}")
        if not any(key in {view.spec.question, view.spec.event_key} for view in self._of(task_id)):
            self._object_to(f"task {task_id} saw {outcome} for {key!r}, which was never asked")
        for view in self._of(task_id):
            if key in {view.spec.question, view.spec.event_key}:
                self._seen[f"saw {view.state}"] += 1
                if _outcome(view) != outcome:
                    self._object_to(f"task {task_id} saw {outcome} for {key!r}, and {view} is recorded")

    def _of(self, task_id: int) -> list[AskView]:
        return [view for view in self.all() if view.task_id == task_id]

    def all(self) -> Iterator[AskView]:
        """Yield all asks and waits for events."""
        ask_id = 1
        while True:
            try:
                yield self._truth.ask(ask_id).wait()
            except AskNotFound:
                return
            ask_id += 1

    # ------------------------------------------------------------ the end

    def faults(self, views: Sequence[TaskView], *, kept: int) -> Iterator[str]:
        """Say which asks are not closed as they should be; `kept` signals wait for somebody in the end."""
        tasks = {view.id: view for view in views}
        heard: Counter[int] = Counter()
        for ask in self.all():
            task, due_us = tasks[ask.task_id], ask.created_us + ask.spec.expires_us * (1 + ask.level)
            if ask.state == "open" or (ask.state == "void" and task.state == "succeeded"):
                yield f"task {task.id} is {task.state}, and its ask is {ask}"
            if ask.state == "expired" and (not ask.spec.expires_us or (ask.closed_us or 0) < due_us):
                yield f"{ask} has expired before {due_us}"
            if ask.state in {"answered", "denied"} and ask.spec.kind == "ask":
                decision = self._decided.get(ask.id)
                if decision is None or decision.answer != ask.answer:
                    yield f"{ask} is recorded, and {decision} was said"
            if ask.state == "answered" and ask.spec.kind == "event":
                heard[msgspec.json.decode(bytes(ask.answer.value if ask.answer else b"0"))] += 1
        for payload, n in heard.items():
            event, waits = self.signals.get(payload, ("", -1))
            if n > max(waits, 1):
                yield f"signal {payload} of {event!r} was heard {n} times, and {waits} waited when it came"
        lost = sum(waits == 0 and payload not in heard for payload, (_, waits) in self.signals.items()) - kept
        if lost > 0:
            yield f"{lost} kept signals are gone, and nobody has heard them"
        if lost < 0:
            yield f"{-lost} signals were heard, and are still kept"
        self._seen["kept signals heard"] += sum(payload in heard and not w for payload, (_, w) in self.signals.items())


def _outcome(view: AskView) -> Any:
    """Return what a body makes of an ask."""
    if view.answer is not None and view.answer.value:
        return msgspec.json.decode(bytes(view.answer.value))
    return {"denied": "AskDenied", "expired": "AskExpired"}.get(view.state, view.state)
