"""What clients see of tasks and conversations, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from sennit.errors import TaskNotFound
from sennit.model.task import Claimed, LogLine, TaskView
from sennit.model.thread import checked_thread_id
from sennit.store.protocol import Store
from sennit.submit.codec import PARENT

# The handler of tasks that were made by `task_create`: no program has a body for it.
EXTERNAL: Final = "sennit.external"
# Notes are steps under these keys: `note|1`, `note|2`, ….
NOTE: Final = "note|"
LOG_LINES_MAX: Final = 100
THREAD_TASKS_MAX: Final = 50


class Errand(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The payload of a task for an agent.

    Attributes:
        depends_on: ids of its parents, in their order.
    """

    title: str
    instructions: str = ""
    data: Any = None
    depends_on: list[int] = []


def claimed(task: Claimed) -> tuple[dict[str, Any], int]:
    """Return a task as its claimant gets it, and how many notes it has."""
    notes = sorted((int(key.removeprefix(NOTE)), value) for key, value in task.steps.items() if key.startswith(NOTE))
    shown = _work(task.handler, task.payload, task.parents)
    shown |= {"queue": task.queue, "handler": task.handler, "failures": task.failures}
    if task.thread_id is not None:
        shown["thread_id"] = task.thread_id
    if notes:
        shown["notes"] = [msgspec.json.decode(value) for _, value in notes]
    return shown, notes[-1][0] if notes else 0


def _work(handler: str, payload: bytes, parents: Sequence[bytes | None]) -> dict[str, Any]:
    """Return what is to be done."""
    if handler != EXTERNAL:
        return {"title": handler, "arguments": _filled(msgspec.json.decode(payload), parents)}
    errand = msgspec.json.decode(payload, type=Errand)
    shown: dict[str, Any] = {"title": errand.title, "instructions": errand.instructions}
    if errand.data is not None:
        shown["data"] = errand.data
    if parents:
        results = [None if result is None else msgspec.json.decode(result) for result in parents]
        shown["dependencies"] = [
            {"task": task_id, "result": result} for task_id, result in zip(errand.depends_on, results, strict=False)
        ]
    return shown


def listed(view: TaskView) -> dict[str, Any]:
    """Return a task as lists show it."""
    title = view.handler
    if view.handler == EXTERNAL and view.payload:
        title = msgspec.json.decode(view.payload, type=Errand).title
    return {"task": view.id, "title": title, "queue": view.queue, "priority": view.priority.name.lower()}


async def task_shown(store: Store, task_id: int) -> dict[str, Any]:
    """Return all there is to know of one task.

    Raises:
        TaskNotFound: there is none.
    """
    view = await store.task(task_id)
    attempts = await store.attempts(task_id)
    asks = await store.asks(states=(), task_id=task_id)
    lines: list[LogLine] = await store.logs(task_id, limit=LOG_LINES_MAX)
    shown = listed(view) | {
        "state": view.state, "handler": view.handler, "attempt": view.attempt, "failures": view.failures,
        "crashes": view.crashes, "thread_id": view.thread_id, "parent": view.parent_id, "reason": view.reason,
        "arguments": _plain(view.payload), "result": _plain(view.result), "error": _plain_error(view),
    }  # fmt: skip
    shown["attempts"] = [
        {"attempt": a.attempt, "outcome": a.outcome, "error": None if a.error is None else a.error.message}
        for a in attempts
    ]
    shown["questions"] = [{"ask": ask.id, "question": ask.spec.title, "state": ask.state} for ask in asks]
    shown["log"] = [{"attempt": line.attempt, "level": line.level, "text": line.text} for line in lines]
    return shown


async def thread_shown(store: Store, thread_id: str) -> dict[str, Any]:
    """Return a conversation: its state and its newest tasks."""
    view = await store.state(checked_thread_id(thread_id))
    tasks = await store.tasks(thread_id=thread_id, limit=THREAD_TASKS_MAX)
    return {
        "thread_id": thread_id,
        "version": view.version,
        "state": {} if view.data is None else msgspec.json.decode(view.data),
        "tasks": [{"task": task.id, "handler": task.handler, "state": task.state} for task in tasks],
    }


async def what_became_of(store: Store, task_id: int) -> str:
    """Return a sentence on a task whose claim is not held any more."""
    try:
        view = await store.task(task_id)
    except TaskNotFound:
        return f"there is no task {task_id} any more"
    if not view.state.live:
        return f"task {task_id} is {view.state}"
    return f"task {task_id} is {view.state}, at attempt {view.attempt}"


def _filled(value: Any, parents: Sequence[bytes | None]) -> Any:
    """Put the results of parents where the arguments stand for them."""
    match value:
        case dict():
            number = value.get(PARENT) if len(value) == 1 else None
            if isinstance(number, int) and number < len(parents):
                return _plain(parents[number])
            return {key: _filled(item, parents) for key, item in value.items()}
        case list():
            return [_filled(item, parents) for item in value]
        case _:
            return value


def _plain(data: bytes | None) -> Any:
    return msgspec.json.decode(data) if data else None


def _plain_error(view: TaskView) -> dict[str, str] | None:
    return None if view.error is None else {"kind": view.error.kind, "message": view.error.message}
