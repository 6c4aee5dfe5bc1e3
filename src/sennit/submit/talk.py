"""`thread()`: the conversation of the running task. And what a task of a conversation must not wait for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, overload

from sennit.errors import UsageError
from sennit.model.task import Outcome, TaskView
from sennit.store.protocol import Store
from sennit.submit.attempt import Attempt, attempt_here
from sennit.submit.handle import Handle
from sennit.sync.ack import Ack
from sennit.sync.pending import Flow, got
from sennit.threads.thread import Thread

S = TypeVar("S")


@overload
def thread(thread_id: str | None = None) -> Thread[dict[str, Any]]: ...
@overload
def thread(thread_id: str | None = None, type: type[S] = ...) -> Thread[S]: ...
def thread(thread_id: str | None = None, type: type[Any] = dict) -> Thread[Any]:  # noqa: A002 - API
    """Return the thread of the running task, or another one by its id; what the body changes commits with its result.

    Args:
        type: of the state: a msgspec struct, dataclass, TypedDict, pydantic model, or plain data.

    Raises:
        UsageError: outside of a body, or the task has no thread.
    """
    attempt = attempt_here("thread()")
    name = attempt.task.thread_id if thread_id is None else thread_id
    if name is None:
        raise UsageError(
            f"task {attempt.task.id} ({attempt.task.handler}) has no thread",
            why="it was submitted without thread_id",
            fix='submit it with .options(thread_id="…"), or name a thread: thread("…")',
        )
    return Thread(lambda: attempt.home, name, type)


def refuse_own_thread(
    attempt: Attempt | None, store: Store, handles: Sequence[Handle[Any]], watched: Sequence[Ack[Outcome]]
) -> Flow[None]:
    """Refuse to wait for a task that starts only when the waiting one has ended.

    Raises:
        UsageError: one of these open tasks is of the same thread as the running one.
    """
    if attempt is None or attempt.task.thread_id is None:
        return
    open_ = [handle for handle, ack in zip(handles, watched, strict=True) if not ack.done]
    views: list[tuple[Handle[Any], Ack[TaskView]]] = []
    for handle in open_:
        if handle.ref not in attempt.threads:
            views.append((handle, store.task(handle.id)))
        elif attempt.threads[handle.ref] == attempt.task.thread_id:
            raise _for_ever(attempt, handle)
    for handle, ack in views:
        view = yield from got(ack)
        if view.thread_id == attempt.task.thread_id and view.state.live:
            raise _for_ever(attempt, handle)


def _for_ever(attempt: Attempt, handle: Handle[Any]) -> UsageError:
    return UsageError(
        f"task {attempt.task.id} would wait for task {handle.id} of its own thread {attempt.task.thread_id!r}, for ever",
        why="tasks of a thread run one at a time, in order: that one starts when this one has ended",
        fix="call the function directly, submit it without thread_id, or let its result go to a later task of the thread",
    )
