"""What processes hold beyond their slots, in the memory store: the moves of `moves.ahead` in plain Python.

Nobody is idle here while something is held ahead that it could run: a transaction serves all orders before it ends.
"""

from __future__ import annotations

from sennit.model.task import Claimed
from sennit.store.memory_rows import Row, Rows


def begin_first(rows: Rows, worker_id: int, queue: str, *, now_us: int) -> Claimed | None:
    """Begin the first that a worker holds of a queue, unless what is ready goes first; then None."""
    held = _held(rows, worker_id, queue)
    if held and rows.ready.has_lanes(queue):
        _give_back(rows, worker_id, queue)
        return None
    ready = rows.ready.first_plain(queue)
    if not held or (ready is not None and (ready.order_us, ready.id) < (held[0].order_us, held[0].id)):
        return None
    return rows.begin(held[0], now_us=now_us)


def refill(rows: Rows, worker_id: int, queue: str, n: int, *, now_us: int) -> None:
    """Claim ahead until `n` are held, when less than half of that is; only of plain tasks, where no others are ready."""
    held = _held(rows, worker_id, queue)
    if len(held) * 2 >= n or rows.ready.has_lanes(queue):
        return
    rows.claim(worker_id, queue, n - len(held), takes=lambda route: not route, now_us=now_us, is_ahead=True)
    if urgent_routes(rows, worker_id, queue):
        rows.pressed.add(queue)


def steal(rows: Rows, worker_id: int, queue: str, n_max: int, *, now_us: int) -> list[Claimed]:
    """Take over half, one at least and `n_max` at most, of what the process that holds most of `queue` has not begun."""
    others = {other_id: _held(rows, other_id, queue) for other_id in sorted(rows.held) if other_id != worker_id}
    fullest = max(others.values(), key=len, default=[])
    if not fullest or n_max <= 0:
        return []
    taken = fullest[: min(n_max, max(1, len(fullest) // 2))]
    return [rows.take_over(row, worker_id, now_us=now_us) for row in taken]


def give_all_back(rows: Rows, worker_id: int) -> None:
    """Put all that a worker holds and has not begun back to its place."""
    for queue in {row.spec.queue for row in rows.held.get(worker_id, {}).values() if row.is_ahead}:
        _give_back(rows, worker_id, queue)


def _give_back(rows: Rows, worker_id: int, queue: str) -> None:
    for row in _held(rows, worker_id, queue):
        rows.put_back(row)


def urgent_routes(rows: Rows, worker_id: int | None, queue: str) -> set[str]:
    """Return the route of urgent tasks of a queue that a worker holds and has not begun: the plain one, or none."""
    held = [] if worker_id is None else _held(rows, worker_id, queue)
    return {row.spec.route for row in held if row.is_urgent}


def _held(rows: Rows, worker_id: int, queue: str) -> list[Row]:
    """Return what a worker has claimed ahead of a queue, in order."""
    held = (row for row in rows.held.get(worker_id, {}).values() if row.is_ahead and row.spec.queue == queue)
    return sorted(held, key=lambda row: (row.order_us, row.id))
