"""Time passes and processes die: timers, time limits, leases, retention."""

from __future__ import annotations

from sennit.model.lifecycle import State
from sennit.model.task import Claim, ErrorInfo, WorkerInfo, encode
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves import ask, lock, permit, provider
from sennit.store.moves.end import stop
from sennit.store.moves.finish import rescue
from sennit.store.moves.place import Place, make_ready
from sennit.store.sql import statements

_TIMERS, _DROP_TIMER, _LIMITS, _DROP_LIMIT, _STATE, _LAPSED, _NEXT_DUE = statements("fire")
_JOIN, _RENEW, _RENEW_HALF, _HELD, _STOPS, _DROP_STOPS, _PEERS, _UNBELL, _LEAVE, _STOP, _REGISTERED, _DESCRIBE, _ = (
    statements("worker")
)
_OLD, *_FORGET = statements("prune")
_FORGET_OLD = statements("prune_old")


def fire(connection: Connection, effects: Effects, *, worker_id: int) -> int | None:
    """Do all that is due; return when the next is. Limits come first: what is too late does not become ready."""
    now_us = effects.now_us
    for due_us, task_id, kind in connection.execute(_LIMITS, (now_us,)).fetchall():
        connection.execute(_DROP_LIMIT, (due_us, task_id, kind))
        _limit_passed(connection, effects, task_id, kind)
    for due_us, task_id, attempt, failures, crashes, *place in connection.execute(_TIMERS, (now_us,)).fetchall():
        connection.execute(_DROP_TIMER, (due_us, task_id))
        make_ready(connection, effects, task_id, Place(*place), counts=(attempt, failures, crashes))
    ask.expire(connection, effects)
    for (lapsed_id,) in connection.execute(_LAPSED, (now_us,)).fetchall():
        lost = rescue(connection, effects, lapsed_id, "the lease of its worker lapsed (frozen, or its host is gone)")
        effects.stops.setdefault(lapsed_id, []).extend(lost)
    lock.expire(connection, effects)
    next_us: int | None
    who = {"worker_id": worker_id, "now_us": now_us}
    next_us, is_held_until_now = connection.execute(_NEXT_DUE, who).fetchone()
    if is_held_until_now:
        _serve_again(connection, effects)
        next_us, _ = connection.execute(_NEXT_DUE, who).fetchone()
    return min((us for us in (next_us, lock.next_due(connection)) if us is not None), default=None)


def _serve_again(connection: Connection, effects: Effects) -> None:
    """Let calls through that were held back until now; the orders for tasks are served at the end of the transaction."""
    pools = provider.Pools(connection, effects.now_us, effects.bounds)
    due = provider.due(connection, pools)
    permit.serve(connection, effects, pools, due)
    pools.flush(effects)
    effects.ready |= permit.queues_of(connection, pools, due)


def _limit_passed(connection: Connection, effects: Effects, task_id: int, kind: str) -> None:
    row = connection.execute(_STATE, (task_id,)).fetchone()
    if row is None or row[0]:  # another limit, or a parent that this fire ended, was first
        return
    what = "was not started within its queue_timeout_s" if kind == "queue_timeout" else "passed its deadline_s"
    stop(connection, effects, [task_id], State.FAILED, ErrorInfo(kind=kind, message=f"it {what}"))


def join(connection: Connection, effects: Effects, worker: WorkerInfo, lease_us: int) -> None:
    """Register a process."""
    expire_us = effects.now_us + lease_us
    connection.execute(_JOIN, (worker.id, expire_us, lease_us, worker.pid, worker.host, worker.bell, encode(worker)))
    effects.joined = True


def describe(connection: Connection, worker: WorkerInfo) -> None:
    """Replace what others see of a process that has joined."""
    connection.execute(_DESCRIBE, (encode(worker), worker.id))


def leave(connection: Connection, effects: Effects, worker_id: int) -> None:
    """Unregister a process. What it holds keeps its row, and so its lease, until rescued."""
    del effects
    connection.execute(_UNBELL, (worker_id,))
    connection.execute(_LEAVE, (worker_id,))


def renew(connection: Connection, effects: Effects, worker_id: int, lease_us: int) -> bool:
    """Renew a lease; False when there is no such process."""
    wanted = {"now_us": effects.now_us, "lease_us": lease_us, "id": worker_id}
    return bool(connection.execute(_RENEW, wanted).rowcount)


def held(connection: Connection, worker_id: int) -> list[Claim]:
    """Return what a process holds."""
    return [Claim(*row) for row in connection.execute(_HELD, (worker_id,)).fetchall()]


def renew_if_half_used(connection: Connection, effects: Effects, worker_id: int) -> None:
    """Renew the lease of a worker that claims after being idle; others then arm a timer for its new end."""
    if connection.execute(_RENEW_HALF, {"now_us": effects.now_us, "id": worker_id}).rowcount:
        effects.renewed = True


def registered(connection: Connection, worker_id: int) -> bool:
    """True from when the worker joins until it leaves or is rescued."""
    return connection.execute(_REGISTERED, (worker_id,)).fetchone() is not None


def post_stops(connection: Connection, stops: dict[int, list[Claim]]) -> None:
    """Leave word for other processes that attempts of theirs were stopped."""
    connection.executemany(_STOP, [(w, *claim) for w, claims in stops.items() for claim in claims])


def take_stops(connection: Connection, worker_id: int) -> list[Claim]:
    """Return and forget the word left for this process."""
    found = [Claim(*row) for row in connection.execute(_STOPS, (worker_id,)).fetchall()]
    if found:
        connection.execute(_DROP_STOPS, (worker_id,))
    return found


def peers(connection: Connection, worker_id: int) -> dict[int, str]:
    """Return the bells of all other processes."""
    return dict(connection.execute(_PEERS, (worker_id,)).fetchall())


def prune(connection: Connection, effects: Effects, *, before_us: int, limit: int) -> int:
    """Delete ended tasks that nobody needs any more."""
    old = connection.execute(_OLD, {"before_us": before_us, "n": limit}).fetchall()
    for statement in _FORGET:
        connection.executemany(statement, old)
    for statement in _FORGET_OLD:
        connection.execute(statement, (before_us,))
    lock.prune(connection, before_us)
    effects.counts["pruned"] += len(old)
    return len(old)
