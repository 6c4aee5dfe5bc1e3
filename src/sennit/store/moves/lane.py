"""ready ─► running for a queue in which tasks need permits or a certain worker: the heads of its lanes, merged in order.

    "", ""            ─► ready, ready …                    always may go
    "anthropic", ""   ─► ready, ready …     ─► in order ─► one with room gives a permit; else its lane is held back,
    "openai/gpt", ""  ─► ready …                           but for tasks whose budget is spent: they only have to be told
    "", "gpu"         ─► ready …                           is not looked at by a worker without what it needs

Who chooses grants at once: what one task takes is not there for the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import Any, Final, NamedTuple

import msgspec

from sennit.model.order import HANDICAP_BY_NUMBER_US
from sennit.model.provider import BudgetView, Permit, WaitReason, split_name
from sennit.model.task import WorkerInfo, encode
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves import budget, permit, wait
from sennit.store.moves.permit import Given
from sennit.store.moves.provider import Pools
from sennit.store.sql import statements

_INFO = statements("worker")[-1]
_NEXT_LANE, _HEADS, _HEADS_SPENT, _CHOSEN, _TAKE, _DROP, *_ = statements("lane")

# Tasks whose budget is spent are looked for near the front of a lane that is held back.
_LOOKED_AT: Final = 1000


class Chosen(NamedTuple):
    """A task that is claimed: its row as `claim` reads it, and what it may spend."""

    row: tuple[Any, ...]
    permit: Permit | None
    spent: BudgetView | None


class Lane(NamedTuple):
    """Ready tasks of a queue that may go under the same conditions."""

    provider: str
    route: str


PLAIN: Final = Lane("", "")


class _Pick(NamedTuple):
    lane: Lane
    id: int
    since_us: int | None
    given: Given | None = None
    spent: BudgetView | None = None


_Row = tuple[int, int, int | None, int | None]  # order_us, id, since_us, whether a budget of the task is spent


def lanes_of(connection: Connection, queue: str) -> list[Lane]:
    """Return the lanes of a queue in which tasks are ready, without that of the plain ones."""
    lanes: list[Lane] = []
    while (row := connection.execute(_NEXT_LANE, (queue, *(lanes[-1] if lanes else PLAIN))).fetchone()) is not None:
        lanes.append(Lane(*row))
    return lanes


def lanes_for(connection: Connection, queue: str, worker_id: int) -> list[Lane]:
    """Return those of them whose tasks this worker may run."""
    lanes = lanes_of(connection, queue)
    if not any(lane.route for lane in lanes):
        return lanes
    row = connection.execute(_INFO, (worker_id,)).fetchone()
    if row is None:
        return []
    worker = msgspec.json.decode(row[0], type=WorkerInfo)
    return [lane for lane in lanes if worker.may_run(lane.route)]


def claim(
    connection: Connection, effects: Effects, pools: Pools, lanes: Sequence[Lane], *, worker_id: int, queue: str, n: int
) -> list[Chosen]:
    """Take at most `n` ready tasks of `queue` that may go, in order: plain ones, and those of `lanes`."""
    providers = sorted({lane.provider for lane in lanes if lane.provider})
    waited_for = {split_name(provider)[0] for provider in providers if provider in pools.lines} if providers else set()
    if waited_for:  # the time may have come for calls that wait, and they go first
        permit.serve(connection, effects, pools, waited_for)
    held = {provider: permit.held(connection, provider) for provider in providers}
    picks, blocked = _pick(connection, pools, queue, lanes, n)
    for provider in providers:
        reason = blocked[provider] or held[provider][0] or "limit" if provider in blocked else ""
        if reason and reason != held[provider][0]:
            permit.hold(connection, provider, reason, effects.now_us)
        elif held[provider][0] and not reason:
            permit.unhold(connection, provider)
    if not picks:
        return []
    chosen = encode([pick.id for pick in picks])
    rows = {row[0]: row for row in connection.execute(_CHOSEN, (chosen,)).fetchall()}
    connection.execute(_TAKE, {"chosen": chosen, "worker_id": worker_id, "now_us": effects.now_us})
    connection.execute(_DROP, (chosen,))
    tasks = []
    for pick in picks:
        row, given = rows[pick.id], None
        if pick.given is not None:
            reason, us = _waited(row, pick, held[pick.lane.provider], effects.now_us)
            wait.add(connection, pick.id, reason, us, is_early=row[2] == 1)
            given = permit.with_claim(
                connection, effects, pick.lane.provider, pick.id, pick.given, worker_id=worker_id, waited=(reason, us)
            )
        tasks.append(Chosen(row, given, pick.spent))
    return tasks


def _pick(
    connection: Connection, pools: Pools, queue: str, lanes: Sequence[Lane], n: int
) -> tuple[list[_Pick], dict[str, WaitReason]]:
    """Choose who goes, and grant the permits; return also the providers that hold theirs back, and for what."""
    any_spent = budget.any_spent(connection)
    rows = {lane: _rows(connection, queue, lane, n, any_spent=any_spent) for lane in (PLAIN, *lanes)}
    heads = [(*row, lane) for lane, line in rows.items() if (row := next(line, None)) is not None]
    heapify(heads)
    blocked: dict[str, WaitReason] = {}
    picks: list[_Pick] = []
    while heads and len(picks) < n:
        _, task_id, since_us, is_spent, lane = heappop(heads)
        spent = budget.spent(connection, lane.provider, task_id) if is_spent else None
        if not lane.provider:
            picks.append(_Pick(lane, task_id, since_us))
        elif spent is not None:
            picks.append(_Pick(lane, task_id, since_us, spent=spent))
        elif lane.provider not in blocked:
            offer = pools.offer(lane.provider)
            if offer.pool is None:
                blocked[lane.provider] = offer.room.reason
            else:
                picks.append(_Pick(lane, task_id, since_us, given=permit.given(offer)))
        if (lane.provider not in blocked or any_spent) and (row := next(rows[lane], None)) is not None:
            heappush(heads, (*row, lane))
    return picks, blocked


def _rows(connection: Connection, queue: str, lane: Lane, n: int, *, any_spent: bool) -> Iterator[_Row]:
    """Return the first rows of a lane; with budgets that are spent, it says which tasks they concern."""
    wanted = {"queue": queue, **lane._asdict(), "n": n}
    if not lane.provider or not any_spent:
        return iter(connection.execute(_HEADS, wanted).fetchall())
    rows: list[_Row] = connection.execute(_HEADS_SPENT, wanted | {"n": max(n, _LOOKED_AT)}).fetchall()
    if budget.spent(connection, lane.provider, None) is not None:
        return ((order_us, task_id, since_us, 1) for order_us, task_id, since_us, _ in rows)
    return iter(rows)


def _waited(row: tuple[Any, ...], pick: _Pick, held: tuple[WaitReason, int], now_us: int) -> tuple[WaitReason, int]:
    """Return for what and how long a task was held back: since its lane is, but not before it was ready."""
    reason, lane_us = held
    order_us, priority = row[1], row[12]
    ready_us = order_us - HANDICAP_BY_NUMBER_US[priority] if pick.since_us is None else pick.since_us
    waited_us = max(0, now_us - max(lane_us, ready_us)) if reason else 0
    return (reason, waited_us) if waited_us else ("", 0)
