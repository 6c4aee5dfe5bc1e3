"""A batch of tasks is handed in.

    nothing ─► waiting (open parents) | scheduled (delay) | ready

Functions over a connection inside a transaction, so `submit_in` can run them in the caller's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from sennit.errors import UnknownDependency
from sennit.model.graph import order_batch
from sennit.model.lifecycle import ENDED_BY_CODE, State
from sennit.model.order import order_us
from sennit.model.task import ErrorInfo, TaskSpec
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves.end import stop
from sennit.store.moves.entry import admit
from sennit.store.moves.key import exists
from sennit.store.moves.place import READY, TIMER
from sennit.store.moves.turn import enter, has_room
from sennit.store.sql import statements

_TASK, _EDGE, _WAITING, _DEADLINE, _PLAIN_TASK, _READY_RANGE = statements("submit")

_STATE = "SELECT state FROM sennit_task WHERE id = ?"


def submit(connection: Connection, effects: Effects, specs: Sequence[TaskSpec]) -> list[int]:
    """Store `specs`, all or none; return their ids.

    Raises:
        SubmitError: the caller rolls back.
    """
    new = specs if all(s.entry is None for s in specs) else admit(connection, effects, specs)
    if new:
        _store(connection, effects, new)
    return [s.ref.id for s in specs]


def _store(connection: Connection, effects: Effects, specs: Sequence[TaskSpec]) -> None:
    if is_fan_out(specs):
        _insert_fan_out(connection, effects, specs)
    elif all(not s.parents and s.key is None and s.child_key is None for s in specs):
        _insert(connection, effects, specs)
    else:
        for spec in _in_order(specs):
            _submit_one(connection, effects, spec)


def is_fan_out(specs: Sequence[TaskSpec]) -> bool:
    """True for many calls of one handler with nothing special about them, and ids without a gap."""
    first, n = specs[0], len(specs)
    if n == 1 or specs[-1].ref.id - first.ref.id != n - 1:
        return False
    kinds = {
        (s.handler, s.queue, s.priority, s.parents, s.key, s.child_key, s.thread_id, s.delay_us, s.deadline_us, s.queue_timeout_us,
         s.provider, s.route)
        for s in specs
    }  # fmt: skip
    plain = (first.handler, first.queue, first.priority, (), None, None, None, 0, 0, 0, "", "")
    return kinds == {plain} and [s.ref.id for s in specs] == list(range(first.ref.id, first.ref.id + n))


def _insert_fan_out(connection: Connection, effects: Effects, specs: Sequence[TaskSpec]) -> None:
    """Write a fan-out: half the columns to bind, and one statement that makes the whole range ready."""
    now_us, first = effects.now_us, specs[0]
    rows = [(s.ref.id, s.handler, s.queue, s.priority, s.payload, s.options, s.crashes_max, now_us) for s in specs]
    connection.executemany(_PLAIN_TASK, rows)
    place = {"place_us": order_us(first.priority, now_us=now_us), "first": first.ref.id, "last": specs[-1].ref.id}
    connection.execute(_READY_RANGE, place)
    effects.counts["submitted"] += len(specs)
    effects.became_ready(first.queue, first.priority)


def _in_order(specs: Sequence[TaskSpec]) -> list[TaskSpec]:
    """Return the batch with every parent before its dependants."""
    by_id = {s.ref.id: s for s in specs}
    return [by_id[i] for i in order_batch({s.ref.id: [p.id for p in s.parents] for s in specs})]


def _submit_one(connection: Connection, effects: Effects, spec: TaskSpec) -> None:
    if exists(connection, effects, spec):
        return
    parents = [p.id for p in spec.parents]
    states = {p: _state_of(connection, p) for p in set(parents)}
    unknown = tuple(sorted(p for p, state in states.items() if state is None))
    if unknown:
        raise UnknownDependency(unknown)
    need = sum(state is State.READY for state in states.values())
    _insert(connection, effects, [spec], need=need)
    task_id = spec.ref.id
    connection.executemany(_EDGE, [(p, task_id, pos) for pos, p in enumerate(parents)])
    for p in parents:
        state = states[p]
        if state in {State.FAILED, State.CANCELLED} and spec.on_parent_failed != "run":
            error = ErrorInfo(kind=f"parent_{state}", message=f"its parent task {p} has {state} already")
            ended = State.FAILED if spec.on_parent_failed == "fail" else State.CANCELLED
            stop(connection, effects, [task_id], ended, error)
            return


def _state_of(connection: Connection, task_id: int) -> State | None:
    """Return the ended state, READY for any open one (a parent is open or not), None when unknown."""
    row = connection.execute(_STATE, (task_id,)).fetchone()
    return None if row is None else ENDED_BY_CODE.get(row[0], State.READY)


def _insert(connection: Connection, effects: Effects, specs: Sequence[TaskSpec], *, need: int = 0) -> None:
    """Write the wide rows and place each task; `need` open parents hold it back (for a batch of one).

    A task of a thread may also have to wait for its turn.
    """
    now_us = effects.now_us
    connection.executemany(
        _TASK,
        [
            (
                s.ref.id, s.handler, s.queue, s.priority, s.thread_id, s.key, s.parent_id, s.child_key, len(s.parents),
                s.on_parent_failed, s.payload, s.options, s.crashes_max, s.delay_us,
                now_us + s.deadline_us if s.deadline_us else None, now_us, s.provider, s.route,
            )
            for s in specs
        ],
    )  # fmt: skip
    effects.counts["submitted"] += len(specs)
    limited = [s for s in specs if s.deadline_us or s.queue_timeout_us]
    if limited:
        limits = [(now_us + s.deadline_us, s.ref.id, "deadline") for s in limited if s.deadline_us]
        limits += [(now_us + s.queue_timeout_us, s.ref.id, "queue_timeout") for s in limited if s.queue_timeout_us]
        connection.executemany(_DEADLINE, limits)
        effects.due(min(limits)[0])
    if all(s.thread_id is None for s in specs):
        if need:
            connection.execute(_WAITING, (specs[0].ref.id, need))
        else:
            _place(connection, effects, specs)
        return
    needs = [need + turn for turn in enter(connection, specs)]
    connection.executemany(_WAITING, [(s.ref.id, n) for s, n in zip(specs, needs, strict=True) if n])
    _place(connection, effects, [s for s, n in zip(specs, needs, strict=True) if not n])


def _place(connection: Connection, effects: Effects, specs: Sequence[TaskSpec]) -> None:
    """Put tasks without open parents into `ready` or `timer`."""
    now_us = effects.now_us
    later = [(now_us + s.delay_us, s.ref.id, 0, 0, 0, "delay") for s in specs if s.delay_us]
    if later:
        connection.executemany(TIMER, later)
        effects.due(min(later)[0])
    rows = []
    for spec in specs:
        if spec.delay_us:
            continue
        task_id, place_us = spec.ref.id, order_us(spec.priority, now_us=now_us)
        if spec.thread_id is None or has_room(connection, effects, task_id, place_us=place_us, counts=(0, 0, 0)):
            rows.append((spec.queue, spec.provider, spec.route, place_us, task_id, 0, 0, 0))
            effects.became_ready(spec.queue, spec.priority, spec.route)
    connection.executemany(READY, rows)
