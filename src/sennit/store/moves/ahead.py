"""Claimed ahead: tasks that a process holds beyond its slots, and has not begun.

    ready ──ahead──► held, marked ──begin: an order for a slot──► running
                       │   └──steal: another's slot is free──► running there, as the next attempt
                       └──give back, rescue──► ready, at the old place; nothing is counted

They stay in rows: no process has a list of its own of what it may begin, so nothing begins that the store has not recorded
first, and what another has taken cannot be begun here. A slot takes what is first in the order, among what its process holds
and what is ready. Only plain tasks are claimed ahead: one of a provider has its permit with the claim, and one of a route may
be for others only. Where such are ready, nothing is held, or they would stand behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple

from sennit.model.order import order_us
from sennit.model.task import Claimed, encode
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves import claim as claims
from sennit.store.moves.claim import Taken
from sennit.store.moves.limit import started
from sennit.store.moves.place import put_back
from sennit.store.moves.provider import Pools
from sennit.store.sql import statements

_FACTS, _BEGIN, _CHOSEN, _OTHERS, _STEAL, _GIVE_BACK, _ANY_URGENT = statements("ahead")


class Served(NamedTuple):
    """What begins for an order; how many were held before, and how many more are held now."""

    taken: Taken
    held: int
    more: int


def serve(
    connection: Connection,
    effects: Effects,
    *,
    worker_id: int,
    queue: str,
    n: int,
    n_ahead: int,
    pools: Callable[[Connection, Effects], Pools],
) -> Served:
    """Take `n` tasks of `queue` for free slots, first in the order, and claim ahead until `n_ahead` are held beyond.

    It looks at what is ready when less than half of that is held, or when something ready goes first.
    """
    who = {"queue": queue, "worker_id": worker_id}
    held, has_lanes, is_passed, limited = connection.execute(_FACTS, who | {"n_before": n - 1}).fetchone()
    if has_lanes:
        if held:
            give_back(connection, effects, worker_id=worker_id, queue=queue)
        taken = claims.claim(connection, effects, worker_id=worker_id, queue=queue, n=n, pools=pools)
        return Served(taken, 0, 0)
    if held < n or is_passed or (held - n) * 2 < n_ahead:
        wanted = n + max(0, n_ahead - held)
        taken = claims.claim(connection, effects, worker_id=worker_id, queue=queue, n=wanted, is_ahead=True)
    else:
        taken = Taken([], leased=True)
    rows = connection.execute(_BEGIN, who | {"n": n, "now_us": effects.now_us}).fetchall()
    begun = [task_id for (task_id,) in rows]
    if begun and limited:
        started(connection, begun)
    fresh = {task.id: task for task in taken.tasks}
    older = _read(connection, queue, [task_id for task_id in begun if task_id not in fresh])
    tasks = sorted(older + [fresh[task_id] for task_id in begun if task_id in fresh], key=_place)
    return Served(Taken(tasks, taken.leased, taken.any_ahead), held, len(fresh) - len(begun))


def _place(task: Claimed) -> tuple[int, int]:
    return order_us(task.priority, now_us=task.ready_us or 0), task.id


def _read(connection: Connection, queue: str, task_ids: list[int]) -> list[Claimed]:
    """Return attempts that begin, in order, with all a worker needs to run them."""
    if not task_ids:
        return []
    rows = connection.execute(_CHOSEN, (encode(task_ids),)).fetchall()
    return sorted((claims.claimed(connection, queue, row) for row in rows), key=_place)


def steal(connection: Connection, effects: Effects, *, worker_id: int, queue: str, n_max: int) -> list[Claimed]:
    """Take over half, one at least and `n_max` at most, of what the process that holds most of `queue` has not begun."""
    who = {"queue": queue, "worker_id": worker_id}
    others = connection.execute(_OTHERS, who).fetchall()
    if not others or n_max <= 0:
        return []
    victim_id, held = max(others, key=itemgetter(1))
    wanted = {"victim_id": victim_id, "n": min(n_max, max(1, held // 2)), "now_us": effects.now_us}
    stolen = [task_id for (task_id,) in connection.execute(_STEAL, who | wanted).fetchall()]
    started(connection, stolen)  # nothing asked whether any has a limit
    effects.claimed = True
    return _read(connection, queue, stolen)


def give_back(connection: Connection, effects: Effects, *, worker_id: int, queue: str) -> None:
    """Put what a process holds of `queue` and has not begun back to its place."""
    for task_id, *counts, place_us in connection.execute(_GIVE_BACK, (queue, worker_id)).fetchall():
        put_back(connection, effects, task_id, queue=queue, place_us=place_us, counts=tuple(counts))


def any_urgent(connection: Connection, *, worker_id: int, queue: str) -> bool:
    """Return whether a process holds an urgent task of `queue` that has not begun."""
    return bool(connection.execute(_ANY_URGENT, (queue, worker_id)).fetchone()[0])
