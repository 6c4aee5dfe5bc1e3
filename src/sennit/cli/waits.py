"""Why a task does not run yet, in a few words, and for how long it has waited for what.

It waits for its parents, its thread, a slot, its provider, a person, an event, or the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from sennit.cli.output import clipped, safe, span
from sennit.cli.provider_view import state_words
from sennit.cli.questions import ALL
from sennit.errors import TaskNotFound
from sennit.model.lifecycle import State
from sennit.model.provider import ProviderView, split_name
from sennit.model.task import TaskView
from sennit.model.thread import AskView
from sennit.store.protocol import Store

# Positions are counted for so many tasks of one list: each is a count of rows.
POSITIONS_MAX: Final = 200
# Times are summed up over so many tasks of one list: each is a look-up.
SUMMED_MAX: Final = 1000
NOTICED_US: Final = 50_000
# In the order in which a task usually meets them; others come after these.
REASONS: Final = ("dependencies", "thread", "queue", "limit", "rate", "pause", "breaker", "budget", "human", "event")

NO_WORKER: Final = "no worker with "  # as the store says it
_TITLE_CHARS: Final = 40


class Waits:
    """What the tasks of one list wait for, looked up together."""

    def __init__(self, store: Store, tasks: Sequence[TaskView]) -> None:
        self._asks: Mapping[int, list[AskView]] = _asks_of(store, tasks)
        behind = [task.id for task in tasks if task.state is State.WAITING and task.reason == "thread"]
        positions = {task_id: store.position(task_id) for task_id in behind[:POSITIONS_MAX]}
        self._positions = {task_id: ack.result() for task_id, ack in positions.items()}
        self._providers = _providers_of(store, tasks)
        self._now_us = store.now_us()

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
        if task.state is State.READY and task.reason.startswith(NO_WORKER):
            return task.reason
        provider = self._providers.get(split_name(task.provider)[0])
        if task.state is State.READY and task.reason and provider is not None:
            return f"{clipped(safe(task.provider), _TITLE_CHARS)}: {state_words(provider, self._now_us)}"
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
    suspended = [task.id for task in tasks if task.state is State.SUSPENDED and task.reason in {"ask", "budget"}]
    if not suspended:
        return {}
    one = suspended[0] if len(suspended) == 1 else None
    found: dict[int, list[AskView]] = {}
    for ask in store.asks(task_id=one, limit=ALL).result():
        found.setdefault(ask.task_id, []).append(ask)
    return found


def _providers_of(store: Store, tasks: Sequence[TaskView]) -> dict[str, ProviderView]:
    """Return the providers that tasks are ready for, and held back by."""
    if not any(task.state is State.READY and task.reason and task.provider for task in tasks):
        return {}
    return {view.spec.name: view for view in store.providers().result()}


# ---------------------------------------------------------------- for how long


def waited_us(store: Store, tasks: Sequence[TaskView]) -> dict[int, dict[str, int]]:
    """Return task → reason → µs, of at most `SUMMED_MAX` tasks; one that is pruned meanwhile is left out."""
    asked = {task.id: store.waits(task.id) for task in tasks[:SUMMED_MAX]}
    found = {}
    for task_id, ack in asked.items():
        with suppress(TaskNotFound):
            found[task_id] = ordered(ack.result())
    return found


def summed(waited: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return reason → µs of several tasks together."""
    total: Counter[str] = Counter()
    for one in waited:
        total.update(one)
    return ordered(total)


def ordered(waited: Mapping[str, int]) -> dict[str, int]:
    """Return reason → µs in the order in which tasks meet them, without those that are 0."""
    places = {reason: n for n, reason in enumerate(REASONS)}
    return {
        reason: waited[reason]
        for reason in sorted(waited, key=lambda reason: (places.get(reason, len(places)), reason))
        if waited[reason]
    }


def waited_words(waited: Mapping[str, int]) -> str:
    """Return times by reason for people: `queue 0.4s, limit 4m12s`; "" for none that anybody would notice."""
    return ", ".join(f"{reason} {span(us / 1e6)}" for reason, us in waited.items() if us >= NOTICED_US)


def waited_json(waited: Mapping[str, int]) -> dict[str, float]:
    """Return reason → seconds."""
    return {reason: us / 1e6 for reason, us in waited.items()}


def held_back(tasks: Iterable[TaskView]) -> dict[str, int]:
    """Return what open tasks wait for → how many do: `parents`, `thread`, `limit anthropic`, `ask`, …; most first."""
    found: Counter[str] = Counter()
    for task in tasks:
        match task.state:
            case State.WAITING:
                found[task.reason or "parents"] += 1
            case State.READY:
                found[task.reason or "queue"] += 1
            case State.SCHEDULED | State.SUSPENDED:
                found[task.reason or str(task.state)] += 1
    return dict(found.most_common())
