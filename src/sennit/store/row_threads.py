"""The half of the stores with rows for conversations: `store.protocol_threads.ThreadStore`; its promises are the docstrings there."""

# ruff: noqa: D102 - the promises stand in store/protocol_threads.py, once

from __future__ import annotations

from collections.abc import Sequence

from sennit.errors import LeaseLost
from sennit.model.task import Claim
from sennit.model.thread import STATE, AskKind, AskState, AskView, Decision, StateView, StateWrite, ThreadView
from sennit.store.database import Connection
from sennit.store.desk import Desk
from sennit.store.effects import Effects
from sennit.store.moves import ask, entry, look, state
from sennit.store.moves.finish import still_held
from sennit.store.reader import Reader
from sennit.store.writer import Writer
from sennit.sync.ack import Ack


class RowThreads:
    """Threads, questions and admission in rows."""

    _writer: Writer[Effects]
    _reader: Reader
    _desk: Desk

    # ------------------------------------------------------------ state

    def state(self, thread_id: str, name: str = STATE, *, version: int | None = None) -> Ack[StateView]:
        if version is None:
            return self._reader.put(lambda c: state.present(c, thread_id, name))
        return self._reader.put(lambda c: state.at(c, thread_id, name, version))

    def write_states(self, writes: Sequence[StateWrite], *, claim: Claim | None = None) -> Ack[list[StateView]]:
        def operation(connection: Connection, effects: Effects) -> list[StateView]:
            if claim is not None and not still_held(connection, claim):
                self._desk.refused += 1
                raise LeaseLost(*claim)
            return state.write(connection, effects, writes, task_id=None if claim is None else claim.task_id)

        return self._writer.put(operation)

    def state_history(self, thread_id: str, name: str = STATE, *, limit: int = 100) -> Ack[list[StateView]]:
        return self._reader.put(lambda c: state.history(c, thread_id, name, limit))

    def threads(self, *, limit: int = 100) -> Ack[list[ThreadView]]:
        return self._reader.put(lambda c: state.threads(c, limit))

    def forget_thread(self, thread_id: str) -> Ack[bool]:
        return self._writer.put(lambda c, fx: state.forget(c, fx, thread_id))

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
        return self._reader.put(
            lambda c: ask.asks(
                c,
                states=states,
                thread_id=thread_id,
                task_id=task_id,
                assignee=assignee,
                kind=kind,
                after_id=after_id,
                newest_first=newest_first,
                limit=limit,
            )
        )

    def ask(self, ask_id: int) -> Ack[AskView]:
        return self._reader.put(lambda c: ask.one(c, ask_id))

    def answer(self, decisions: Sequence[Decision]) -> Ack[list[AskView]]:
        return self._writer.put(lambda c, fx: ask.answer(c, fx, decisions))

    def signal(self, name: str, event_key: str, payload: bytes) -> Ack[int]:
        return self._writer.put(lambda c, fx: ask.signal(c, fx, name, event_key, payload))

    def watch_inbox(self, seen: int) -> Ack[int]:
        return self._desk.callers.wait_inbox(seen)

    # ------------------------------------------------------------ admission

    def invalidate(self, *, tags: Sequence[str] = (), keys: Sequence[tuple[str, str]] = ()) -> Ack[int]:
        return self._writer.put(lambda c, _: entry.invalidate(c, tags=tags, keys=keys))

    def wait_room(self, queue: str, queue_max: int) -> Ack[None]:
        return self._desk.callers.wait_room(queue, queue_max)

    def position(self, task_id: int) -> Ack[int | None]:
        def operation(connection: Connection) -> int | None:
            look.outcome(connection, task_id)  # raises when there is no such task
            return entry.position(connection, task_id, lambda: self._desk.members.peers.working(connection))

        return self._reader.put(operation)
