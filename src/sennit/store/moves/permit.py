"""Permits: a call asks, waits in its lane, is let through, is over.

    ask ─► waits ──serve──► out ──give_back | free──► over          the lane: by priority, then by who came first
                └──────────── give_back | free | refuse ──► gone

`serve` runs once per transaction, after all that frees permits and before tasks are claimed: calls that wait come first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from sennit.errors import LimitError, PermitLost, ProviderBusy
from sennit.limit.governor import Mark, Room
from sennit.model.provider import CallReport, Permit, PermitRequest, WaitReason, exceeded, split_name
from sennit.model.task import encode
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves import budget, over, wait
from sennit.store.moves.provider import Offer, Over, Pools, lane_of
from sennit.store.sql import statements

(
    _ASK, _GRANT, _WITH_CLAIM, _, _FIRST, _DROP, _ONE, _WAITING, _WAITING_OF,
) = statements("permit")  # fmt: skip
_READY_LANES, _HELD, _HOLD, _UNHOLD, _ANY_READY = statements("lane")[6:]

# Nobody knows when a call ends that is on its way; whoever does not want to wait may look again after so long.
_LOOK_AGAIN_S: Final = 1.0


class Given(NamedTuple):
    """A permit that was granted and has no row yet."""

    provider: str
    model: str
    mark: Mark


# ---------------------------------------------------------------- asking and giving back


def ask(connection: Connection, effects: Effects, request: PermitRequest, *, worker_id: int) -> None:
    """Put a call into its lane; the end of the transaction serves it.

    Raises:
        BudgetExceeded: nothing is left for it.
    """
    spent = budget.spent(connection, request.provider, request.task_id)
    if spent is not None:
        raise exceeded(spent, split_name(request.provider)[0])
    provider, model = split_name(request.provider)
    row = (request.id, provider, model, worker_id, request.task_id, request.priority, request.tokens, effects.now_us)
    connection.execute(_ASK, row)
    calls = effects.for_calls()
    calls.asked[request.id] = request.wait
    calls.touched.add(provider)


def give_back(
    connection: Connection,
    effects: Effects,
    permit_id: int,
    report: CallReport | None,
    *,
    worker_ids: Collection[int],
) -> bool:
    """A call is over, or is not wanted any more; False when this process has no such permit."""
    row = over.returned(connection, effects, permit_id, report, worker_ids=worker_ids)
    if row is not None and report is not None and row.granted_us is not None:
        budget.charge(connection, effects, row.provider, row.task_id, report.usage)
    return row is not None


def report(connection: Connection, effects: Effects, lane: str, said: CallReport, *, task_id: int | None) -> None:
    """Learn from a call that had no permit."""
    provider, model = split_name(lane)
    said = said if said.model else msgspec.structs.replace(said, model=model)
    over.settle(connection, effects, [Over(provider, model, None, said)])
    budget.charge(connection, effects, provider, task_id, said.usage)


# ---------------------------------------------------------------- serving


def serve(
    connection: Connection,
    effects: Effects,
    pools: Pools,
    touched: Collection[str] | None,
    *,
    asked: Mapping[int, bool] = MappingProxyType({}),
) -> None:
    """Let calls through whose provider, or one that stands in for it, is among `touched`; None is any provider.

    Args:
        asked: requests of this transaction; those that do not wait are let through now, or refused.
    """
    lanes = [lane for lane in sorted(pools.lines) if _concerns(pools, lane, touched)]
    closed = _serve_lanes(connection, effects, pools, lanes, asked)
    # Those that somebody else must stand in for come after all who have asked for that one.
    _serve_lanes(connection, effects, pools, closed, asked, stand_in=True)
    for permit_id in [permit_id for permit_id, waits in asked.items() if not waits]:
        _refuse_if_it_waits(connection, effects, pools, permit_id)


def _concerns(pools: Pools, lane: str, touched: Collection[str] | None) -> bool:
    name = split_name(lane)[0]
    if touched is None or name in touched:
        return True
    pool = pools.known(name)
    return pool is not None and any(split_name(other)[0] in touched for other in pool.spec.fallbacks)


def _serve_lanes(
    connection: Connection,
    effects: Effects,
    pools: Pools,
    lanes: Sequence[str],
    asked: Mapping[int, bool],
    *,
    stand_in: bool = False,
) -> list[str]:
    """Serve the heads of lanes by priority and who came first, until each is empty or held back; return those that are closed."""
    heads = {lane: head for lane in lanes if (head := _first(connection, lane)) is not None}
    closed = []
    while heads:
        lane = min(heads, key=lambda lane: _place(heads[lane]))
        head = heads.pop(lane)
        _, permit_id, tokens, worker_id, *_ = head
        offer = pools.offer(lane, tokens, is_first=True)
        is_own = offer.pool is not None and offer.pool.name == split_name(lane)[0]
        if not stand_in and (offer.room.is_closed or (offer.pool is not None and not is_own)):
            closed.append(lane)
            continue
        if offer.pool is not None:
            _let_through(connection, effects, lane, head, offer, at_once=permit_id in asked)
        elif asked.get(permit_id, True):
            if held(connection, lane)[0] != offer.room.reason:
                hold(connection, lane, offer.room.reason, effects.now_us)
            continue
        else:
            connection.execute(_DROP, (permit_id,))
            effects.for_calls().refused.append((worker_id, permit_id, _busy(lane, offer.room, effects.now_us)))
        behind = _first(connection, lane)
        if behind is not None:
            heads[lane] = behind
        else:
            pools.lines.discard(lane)
            if permit_id not in asked and not connection.execute(_ANY_READY, (lane,)).fetchone()[0]:
                unhold(connection, lane)
    return closed


def _place(head: tuple[Any, ...]) -> tuple[int, int, int]:
    """Return where a call stands: ids are no order, since each process takes a block of them."""
    priority, permit_id, _, _, _, since_us = head
    return priority, since_us, permit_id


def _first(connection: Connection, lane: str) -> tuple[Any, ...] | None:
    """Return priority, id, tokens, worker id, task id and since_us of the first call that waits in a lane."""
    found: tuple[Any, ...] | None = connection.execute(_FIRST, split_name(lane)).fetchone()
    return found


def _let_through(
    connection: Connection,
    effects: Effects,
    lane: str,
    head: tuple[Any, ...],
    offer: Offer,
    *,
    at_once: bool,
) -> None:
    _, permit_id, tokens, worker_id, task_id, since_us = head
    provider, model, mark = given(offer, tokens)
    waited_us = 0 if at_once else effects.now_us - since_us
    reason = held(connection, lane)[0] or "limit" if waited_us else ""
    fallback_for = "" if provider == split_name(lane)[0] else lane
    connection.execute(_GRANT, (provider, model, effects.now_us, encode(mark), fallback_for, reason, permit_id))
    if waited_us and task_id is not None:
        wait.add(connection, task_id, reason, waited_us)
    permit = _permit(permit_id, provider, model, mark, fallback_for, waited_us=waited_us, reason=reason)
    effects.for_calls().granted.append((worker_id, permit))


def given(offer: Offer, tokens: int = 0) -> Given:
    """Take up an offer."""
    pool = offer.pool
    assert pool is not None  # noqa: S101 - the caller has looked
    return Given(pool.name, offer.model, pool.grant(offer.model, tokens))


def with_claim(
    connection: Connection,
    effects: Effects,
    lane: str,
    task_id: int,
    given: Given,
    *,
    worker_id: int,
    waited: tuple[WaitReason, int],
) -> Permit:
    """Store the permit of a task that is claimed."""
    provider, model, mark = given
    reason, waited_us = waited
    now_us = effects.now_us
    fallback_for = "" if provider == split_name(lane)[0] else lane
    row = (task_id, provider, model, worker_id, now_us - waited_us, now_us, encode(mark), fallback_for, reason)
    connection.execute(_WITH_CLAIM, row)
    return _permit(task_id, provider, model, mark, fallback_for, waited_us=waited_us, reason=reason)


def _permit(
    permit_id: int, provider: str, model: str, mark: Mark, fallback_for: str, *, waited_us: int, reason: WaitReason
) -> Permit:
    return Permit(
        id=permit_id, provider=provider, model=model, fallback_for=fallback_for, is_probe=mark.is_probe,
        granted_us=mark.granted_us, waited_us=waited_us, reason=reason,
    )  # fmt: skip


# ---------------------------------------------------------------- refusing


def _refuse_if_it_waits(connection: Connection, effects: Effects, pools: Pools, permit_id: int) -> None:
    """Drop a request that does not wait, and stands behind others that do."""
    row = connection.execute(_ONE, (permit_id,)).fetchone()
    if row is None or row[4] is not None:
        return
    lane = lane_of(row[0], row[1])
    connection.execute(_DROP, (permit_id,))
    room = Room(0, held(connection, lane)[0] or "limit", pools.pool(row[0]).wake_us)
    effects.for_calls().refused.append((0, permit_id, _busy(lane, room, effects.now_us)))


def _busy(lane: str, room: Room, now_us: int) -> ProviderBusy:
    after_s = _LOOK_AGAIN_S if room.wake_us is None else max(room.wake_us - now_us, 1) / 1e6
    return ProviderBusy(split_name(lane)[0], reason=room.reason, retry_after_s=after_s)


def refuse_spent(connection: Connection, effects: Effects) -> None:
    """Drop calls that wait, and for which a budget now leaves nothing."""
    if not budget.any_spent(connection):
        return
    for permit_id, worker_id, provider, task_id in connection.execute(_WAITING).fetchall():
        view = budget.spent(connection, provider, task_id)
        if view is not None:
            connection.execute(_DROP, (permit_id,))
            effects.for_calls().refused.append((worker_id, permit_id, exceeded(view, provider)))
            effects.for_calls().touched.add(provider)


def waiting_of(connection: Connection, worker_ids: Collection[int]) -> set[int]:
    """Return the requests of a process that still wait."""
    return {permit_id for (permit_id,) in connection.execute(_WAITING_OF, (encode(list(worker_ids)),))}


def became(connection: Connection, request: PermitRequest) -> Permit | LimitError | None:
    """Return what became of a request: a permit, why there will be none, or None while it waits."""
    row = connection.execute(_ONE, (request.id,)).fetchone()
    if row is None:
        provider = split_name(request.provider)[0]
        spent = budget.spent(connection, request.provider, request.task_id)
        return PermitLost(provider) if spent is None else exceeded(spent, provider)
    provider, model, fallback_for, since_us, granted_us, mark, reason = row
    if granted_us is None:
        return None
    waited_us = granted_us - since_us
    marked = msgspec.json.decode(mark, type=Mark)
    return _permit(request.id, provider, model, marked, fallback_for, waited_us=waited_us, reason=reason)


# ---------------------------------------------------------------- who is held back


def held(connection: Connection, lane: str) -> tuple[WaitReason, int]:
    """Return what a lane is held back for, and since when; "" and 0 when it is not."""
    found: tuple[WaitReason, int] | None = connection.execute(_HELD, (lane,)).fetchone()
    return ("", 0) if found is None else found


def hold(connection: Connection, lane: str, reason: WaitReason, now_us: int) -> None:
    """Note that somebody in a lane is held back."""
    connection.execute(_HOLD, (lane, reason, now_us))


def unhold(connection: Connection, lane: str) -> None:
    """Note that nobody is."""
    connection.execute(_UNHOLD, (lane,))


def queues_of(connection: Connection, pools: Pools, touched: Collection[str] | None) -> set[str]:
    """Return the queues in which tasks are ready that one of `touched` could serve; None is any provider."""
    found = set()
    last = ("", "")
    while (row := connection.execute(_READY_LANES, last).fetchone()) is not None:
        last = row
        if _concerns(pools, row[0], touched):
            found.add(row[1])
    return found
