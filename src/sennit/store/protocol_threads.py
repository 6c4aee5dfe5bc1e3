"""What a store promises about conversations: their turns, their state, their questions, and who may enter.

The second half of `store.protocol.Store`, which inherits this. Each sentence of a docstring has a test in
`sennit.testing.contract`.

*Turns.* The open tasks of a thread stand in the order they were handed in, and only the first has the turn: only it
becomes ready. It keeps the turn while it is scheduled, retried or suspended, until it ends; then the next has it. A
task without the turn is `waiting`, reason `thread`.

*Bounds.* A store object may be given `Bounds`. With `threads_max`, at most so many tasks that have a thread are ready or
running at once; a task that has its turn and finds no room is `waiting`, reason `threads_max`, and they get room in the
order in which they would have been ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sennit.model.task import Claim
from sennit.model.thread import (
    STATE,
    AskKind,
    AskState,
    AskView,
    Decision,
    StateView,
    StateWrite,
    ThreadView,
)
from sennit.sync.ack import Ack


class ThreadStore(Protocol):
    """Threads, questions and admission."""

    # ------------------------------------------------------------ state

    def state(self, thread_id: str, name: str = STATE, *, version: int | None = None) -> Ack[StateView]:
        """Return the present version, or the one asked for; version 0 without data when there is none.

        After `forget_thread` the present version has no data.

        Sees every write that was acknowledged before it was called.
        """

    def write_states(self, writes: Sequence[StateWrite], *, claim: Claim | None = None) -> Ack[list[StateView]]:
        """Write new versions, all or none, in order; return them.

        A write whose `expected` is not the present version is a conflict.
        A write whose `operation_id` the thread knows writes nothing, and the version it made then is returned.
        Two writes to one chain in one call must follow on each other.
        Versions older than `Bounds.state_versions` lose their data; the present one never does.

        Raises:
            ConcurrentModificationError: a conflict, with the present version; nothing was written.
            LeaseLost: a claim was given and is no longer held; nothing was written, and the ledger counts it as refused.
        """

    def state_history(self, thread_id: str, name: str = STATE, *, limit: int = 100) -> Ack[list[StateView]]:
        """Return the versions that still have data, newest first."""

    def threads(self, *, limit: int = 100) -> Ack[list[ThreadView]]:
        """Return threads that have an open task or a state: those with open tasks first, then the last written first."""

    def forget_thread(self, thread_id: str) -> Ack[bool]:
        """Delete the state and config of a thread, all versions; False when there was nothing.

        Versions go on from where they were, so that nobody who knew the old state can overwrite the new one.

        Raises:
            ThreadBusy: it has open tasks; nothing was deleted.
        """

    # ------------------------------------------------------------ questions

    def asks(
        self,
        *,
        states: Sequence[AskState] = ("open",),
        thread_id: str | None = None,
        task_id: int | None = None,
        assignee: str | None = None,
        kind: AskKind = "ask",
        after_id: int = 0,
        newest_first: bool = False,
        limit: int = 100,
    ) -> Ack[list[AskView]]:
        """Return questions that match, oldest first; waits for events are not among them, unless `kind` asks for those.

        With `after_id` only those with a greater id; ids grow in the order in which they are asked first. With
        `newest_first` the newest come first, and so are those that `limit` leaves.
        """

    def ask(self, ask_id: int) -> Ack[AskView]:
        """Return one question or wait for an event.

        Raises:
            AskNotFound: no such one.
        """

    def answer(self, decisions: Sequence[Decision]) -> Ack[list[AskView]]:
        """Decide questions, all or none; return them as they are then.

        The answer is kept with the finished steps of the task, under the key of the ask, and a suspended task is ready.
        An open ask is decided once: by the first answer, by expiring, or by the end of its task (`void`).

        Raises:
            AskNotFound: no such one.
            AskClosed: one is not open.
            AskStale: one has another version than its decision names.
        """

    def signal(self, name: str, event_key: str, payload: bytes) -> Ack[int]:
        """Answer every open wait for this event with `payload`; return how many tasks waited.

        When none does it is kept, and the next wait for it takes the oldest one kept, each once.
        """

    def watch_inbox(self, seen: int) -> Ack[int]:
        """Resolve with the inbox's revision as soon as it is greater than `seen`.

        The revision grows with every question that is asked, changed or closed, in whatever process.
        """

    # ------------------------------------------------------------ admission

    def invalidate(self, *, tags: Sequence[str] = (), keys: Sequence[tuple[str, str]] = ()) -> Ack[int]:
        """Forget cached results by tag or by (handler, cache key); return how many. Open tasks go on."""

    def wait_room(self, queue: str, queue_max: int) -> Ack[None]:
        """Resolve as soon as fewer than `queue_max` tasks of `queue` wait for a slot, their thread's turn or room."""

    def position(self, task_id: int) -> Ack[int | None]:
        """Return how many tasks are claimed before this one if nothing more is handed in; None unless it waits for that.

        Ready: those of its queue before it that a worker may run which may run it, too. Waiting for its thread's turn: those of its thread before it.

        Raises:
            TaskNotFound: not in the store.
        """
