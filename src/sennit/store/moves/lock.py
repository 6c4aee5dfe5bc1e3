"""Distributed locks: a line per name, in which only the first is let through.

    ask ─► waits ──serve──► holds ──release | its time is over | seize | its process has died──► gone, serve again
              └── give up | its process has died ──► gone

`serve` runs in every transaction that takes somebody out of a line or away from a lock, so nobody has to ask again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from sennit.errors import Fenced, LockLost, LockTimeout
from sennit.model.lock import Fence, LockGrant, LockHolder, LockRequest, LockView, fits
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.sql import statements

(
    _ASK, _DROP_LAPSED, _HEAD, _NEXT_TOKEN, _GRANT, _EXTEND, _RELEASE, _ONE, _DROP,
    _OF_WORKER, _DROP_WORKER, _MOVE, _SEIZE, _DUE, _NEXT_DUE, _TOKEN, _HELD_UNTIL, _LEARN, _NAMED, _USED, _LINE,
    _FLOOR, _PRUNE,
) = statements("lock")  # fmt: skip


# ---------------------------------------------------------------- asking and letting go


def ask(connection: Connection, effects: Effects, request: LockRequest, *, worker_id: int) -> None:
    """Put a wish in line, and serve the line.

    Raises:
        LockTimeout: it does not wait, and did not get it at once.
    """
    name, now_us = request.name, effects.now_us
    row = (
        request.id, name, worker_id, request.owner, int(request.shared), request.n_max, request.ttl_us, now_us,
    )  # fmt: skip
    connection.execute(_ASK, row)
    serve(connection, effects, name)
    if not request.wait and not any(grant_id == request.id for _, grant_id, _ in effects.for_locks().granted):
        connection.execute(_DROP, (request.id,))
        raise busy(name, view(connection, name, now_us), timeout_s=0.0)


def busy(name: str, seen: LockView | None, *, timeout_s: float) -> LockTimeout:
    """Return the error of a wish that was not served in time."""
    holders = [] if seen is None else [f"{h.owner} (token {h.token})" for h in seen.holders]
    waiting = 0 if seen is None else len(seen.waiting)
    owner = ", ".join(holders[:3]) or "nobody"
    return LockTimeout(name, timeout_s=timeout_s, owner=f"{owner}, {waiting} more wait" if waiting else owner)


def serve(connection: Connection, effects: Effects, name: str, *, was_until_us: int | None = None) -> None:
    """Let all through that come first and fit.

    Args:
        was_until_us: until when those who wait took the lock to be held. When it is over earlier now, the first of the line is
            told, for its process keeps the timer.
    """
    now_us = effects.now_us
    news = effects.for_locks()
    while True:
        held, all_shared, until_us, *first = connection.execute(_HEAD, (name,)).fetchone()
        if until_us is not None and until_us <= now_us:
            connection.execute(_DROP_LAPSED, (name, now_us))
            continue
        request_id, worker_id, shared, n_max, ttl_us, asked_us = first
        if request_id is None:
            return
        if not fits(shared=bool(shared), n_max=n_max, held=held, all_shared=bool(all_shared)):
            if was_until_us is not None and until_us < was_until_us:
                news.earlier.add(worker_id)
            return
        token = connection.execute(_NEXT_TOKEN, (name, now_us)).fetchone()[0]
        grant = LockGrant(
            name=name, token=token, shared=bool(shared), granted_us=now_us, until_us=now_us + ttl_us,
            waited_us=now_us - asked_us,
        )  # fmt: skip
        connection.execute(_GRANT, (token, now_us, grant.until_us, request_id))
        news.granted.append((worker_id, request_id, grant))
        if not shared and (was_until_us is None or grant.until_us >= was_until_us):
            return  # nobody fits beside it, and whoever waits is awake in time


def extend(connection: Connection, effects: Effects, name: str, token: int, ttl_us: int) -> LockGrant:
    """Hold it until `ttl_us` from now.

    Raises:
        LockLost: it is not held any more.
    """
    until_us = effects.now_us + ttl_us
    was = connection.execute(_HELD_UNTIL, (name, token, effects.now_us)).fetchone()
    if was is None:
        raise LockLost(name, token)
    shared, granted_us, asked_us = connection.execute(_EXTEND, (until_us, name, token)).fetchone()
    if until_us < was[0]:
        first_worker_id = connection.execute(_HEAD, (name,)).fetchone()[4]
        if first_worker_id is not None:
            effects.for_locks().earlier.add(first_worker_id)
    return LockGrant(
        name=name, token=token, shared=bool(shared), granted_us=granted_us, until_us=until_us,
        waited_us=granted_us - asked_us,
    )  # fmt: skip


def release(connection: Connection, effects: Effects, name: str, token: int) -> None:
    """Let go.

    Raises:
        LockLost: it is not held any more.
    """
    row = connection.execute(_RELEASE, (name, token, effects.now_us)).fetchone()
    if row is None:
        raise LockLost(name, token)
    serve(connection, effects, name, was_until_us=row[0])


def give_up(connection: Connection, effects: Effects, request_id: int) -> bool:
    """Take a wish out of its line, or release its grant; False when there is no such one."""
    row = connection.execute(_ONE, (request_id,)).fetchone()
    if row is None:
        return False
    name, until_us = row
    connection.execute(_DROP, (request_id,))
    serve(connection, effects, name, was_until_us=until_us)
    return True


def seize(connection: Connection, effects: Effects, name: str) -> int:
    """Take it away from all who hold it; return how many did. Their fences are old, also when nobody waits."""
    held = connection.execute(_SEIZE, (name,)).fetchall()
    if connection.execute(_TOKEN, (name,)).fetchone() is not None:
        connection.execute(_NEXT_TOKEN, (name, effects.now_us))
        serve(connection, effects, name, was_until_us=max((until_us for (until_us,) in held), default=None))
    return len(held)


# ---------------------------------------------------------------- time, death, registration


def expire(connection: Connection, effects: Effects) -> None:
    """Pass on what was held for too long and somebody waits for."""
    for (name,) in connection.execute(_DUE, (effects.now_us,)).fetchall():
        serve(connection, effects, name)


def next_due(connection: Connection) -> int | None:
    """Return when the first lock that somebody waits for is over; None when nobody waits."""
    due_us: int | None = connection.execute(_NEXT_DUE).fetchone()[0]
    return due_us


def free(connection: Connection, effects: Effects, worker_ids: Collection[int]) -> None:
    """A process is dead, or its store object closed: it holds nothing and waits for nothing."""
    for worker_id in worker_ids:
        rows = connection.execute(_OF_WORKER, (worker_id,)).fetchall()
        if rows:
            connection.execute(_DROP_WORKER, (worker_id,))
        names = {row[1] for row in rows}
        for name in sorted(names):
            held = [until_us for _, of, *_, until_us in rows if of == name and until_us is not None]
            serve(connection, effects, name, was_until_us=max(held, default=None))


def move(connection: Connection, *, old_id: int, new_id: int) -> None:
    """A client has become a worker: what it holds and waits for goes with it."""
    connection.execute(_MOVE, (new_id, old_id))


def has_rows(connection: Connection, worker_ids: Iterable[int]) -> bool:
    """Return whether a process holds a lock or waits for one."""
    return any(connection.execute(_OF_WORKER, (worker_id,)).fetchone() is not None for worker_id in worker_ids)


def became(connection: Connection, worker_ids: Iterable[int]) -> dict[int, LockGrant | None]:
    """Return what a process wants: its grant, or None while it waits, by request."""
    found: dict[int, LockGrant | None] = {}
    for worker_id in worker_ids:
        for request_id, name, token, shared, asked_us, granted_us, until_us in connection.execute(
            _OF_WORKER, (worker_id,)
        ).fetchall():
            found[request_id] = None
            if token is not None:
                found[request_id] = LockGrant(
                    name=name, token=token, shared=bool(shared), granted_us=granted_us, until_us=until_us,
                    waited_us=granted_us - asked_us,
                )  # fmt: skip
    return found


def prune(connection: Connection, before_us: int) -> None:
    """Forget names that nobody has used since; new tokens of them will be greater all the same."""
    connection.execute(_FLOOR, (before_us,))
    connection.execute(_PRUNE, (before_us,))


# ---------------------------------------------------------------- fences


def check(connection: Connection, effects: Effects, fences: Iterable[Fence]) -> None:
    """Refuse what was written under a lock that is lost.

    Raises:
        Fenced: one of them is old; the caller rolls the write back.
    """
    for fence in fences:
        row = connection.execute(_TOKEN, (fence.name,)).fetchone()
        newest = 0 if row is None else row[0]
        if fence.is_foreign:
            if newest > fence.token:
                raise Fenced(fence.name, fence.token, newest=newest)
            connection.execute(_LEARN, (fence.name, fence.token, effects.now_us))
        elif fence.shared:
            if connection.execute(_HELD_UNTIL, (fence.name, fence.token, effects.now_us)).fetchone() is None:
                raise Fenced(fence.name, fence.token, newest=newest)
        elif newest != fence.token:
            raise Fenced(fence.name, fence.token, newest=newest)


# ---------------------------------------------------------------- looking


def view(connection: Connection, name: str, now_us: int) -> LockView | None:
    """Return one lock; None when it was never held."""
    row = connection.execute(_NAMED, (name,)).fetchone()
    return None if row is None else _view(connection, row[0], row[1], now_us)


def views(connection: Connection, names: Sequence[str], now_us: int) -> list[LockView]:
    """Return locks by name: those of `names`, or all that are held or waited for."""
    if names:
        return [seen for name in sorted({*names}) if (seen := view(connection, name, now_us)) is not None]
    used = connection.execute(_USED, (now_us,)).fetchall()
    return [_view(connection, name, token, now_us) for name, token in used]


def _view(connection: Connection, name: str, token: int, now_us: int) -> LockView:
    line = [
        LockHolder(
            id=i, owner=owner, shared=bool(shared), n_max=n_max, token=held, since_us=since_us, until_us=until_us
        )
        for i, owner, shared, n_max, held, since_us, until_us in connection.execute(_LINE, (name, now_us)).fetchall()
    ]
    return LockView(
        name=name,
        token=token,
        holders=tuple(h for h in line if h.token is not None),
        waiting=tuple(h for h in line if h.token is None),
    )
