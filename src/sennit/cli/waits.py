"""Why a task does not run yet, in a few words: its parents, its thread, a person, an event, the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sennit.cli.output import clipped, safe
from sennit.cli.questions import ALL
from sennit.model.lifecycle import State
from sennit.model.task import TaskView
from sennit.model.thread import AskView
from sennit.store.protocol import Store

# Positions are counted for so many tasks of one list: each is a count of rows.
POSITIONS_MAX: Final = 200

_TITLE_CHARS: Final = 40


class Waits:
    """What the tasks of one list wait for, looked up together."""

    def __init__(self, store: Store, tasks: Sequence[TaskView]) -> None:
        self._asks: Mapping[int, list[AskView]] = _asks_of(store, tasks)
        behind = [task.id for task in tasks if task.state is State.WAITING and task.reason == "thread"]
        positions = {task_id: store.position(task_id) for task_id in behind[:POSITIONS_MAX]}
        self._positions = {task_id: ack.result() for task_id, ack in positions.items()}

    def asks(self, task_id: int) -> list[AskView]:
        """Return the open questions of a task, oldest first."""
        return self._asks.get(task_id, [])

    def position(self, task_id: int) -> int | None:
        """Return how many tasks of its thread go before it, if it waits for its turn."""
        return self._positions.get(task_id)

    def of(self, task: TaskView) -> str:
        """Return what a task waits for, "" for nothing."""
        if task.state is State.WAITING:
            return self._waiting(task)
        asks = self.asks(task.id)
        if task.state is State.SUSPENDED and asks:
            more = f" and {len(asks) - 1} more" if len(asks) > 1 else ""
            return f"question {asks[0].id}: {clipped(asks[0].spec.question, _TITLE_CHARS)}{more}"
        if task.state is State.SUSPENDED and task.reason == "event":
            return "an event"
        return task.reason

    def _waiting(self, task: TaskView) -> str:
        turn = ""
        if task.reason == "thread":
            before = self.position(task.id)
            turn = f"turn of thread {clipped(safe(task.thread_id or ''), _TITLE_CHARS)}"
            turn += "" if before is None else f" ({before} before it)"
        elif task.reason == "threads_max":
            turn = "room (threads_max)"
        parents = task.waiting_for - bool(turn)  # the turn counts as one of what it waits for
        return " and ".join(filter(None, [_parents(parents), turn]))


def _parents(n: int) -> str:
    return "" if n <= 0 else "1 parent" if n == 1 else f"{n} parents"


def _asks_of(store: Store, tasks: Sequence[TaskView]) -> dict[int, list[AskView]]:
    suspended = [task.id for task in tasks if task.state is State.SUSPENDED and task.reason == "ask"]
    if not suspended:
        return {}
    one = suspended[0] if len(suspended) == 1 else None
    found: dict[int, list[AskView]] = {}
    for ask in store.asks(task_id=one, limit=ALL).result():
        found.setdefault(ask.task_id, []).append(ask)
    return found
