"""Attempts end: the claim token decides, and the task goes where the ending says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import assert_never

from sennit.errors import ConcurrentModificationError, Fenced, SubmitError
from sennit.model.lifecycle import State
from sennit.model.task import (
    Cancelled,
    Claim,
    Crashed,
    Ending,
    ErrorInfo,
    Failed,
    GivenBack,
    Parked,
    Preempted,
    Retried,
    Slept,
    Succeeded,
)
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves import ask, outside, over, state, turn, wait
from sennit.store.moves.end import end, note, release
from sennit.store.moves.place import put_back, schedule
from sennit.store.moves.submit import submit
from sennit.store.sql import statements

_RECORD, _DROP_RUNNING = statements("finish")
_UNRUN, _PARK = statements("unrun")
_HELD, _DROP_WORKER, _DROP_STOPS = statements("rescue")
_CRASHES_MAX = "SELECT crashes_max FROM sennit_task WHERE id = ?"


def finish(connection: Connection, effects: Effects, endings: Sequence[Ending]) -> list[bool | None]:
    """Record how attempts ended; True per ending that was accepted, None when its writes conflict."""
    accepted: list[bool | None] = []
    for plain, group in groupby(endings, _is_plain_success):
        if plain:
            accepted += _succeed(connection, effects, list(group))  # type: ignore[arg-type]  # groupby loses the type
        else:
            accepted += [_end_attempt(connection, effects, ending) for ending in group]
    effects.counts["refused"] += accepted.count(False)
    return accepted


def _is_plain_success(ending: Ending) -> bool:
    return isinstance(ending, Succeeded) and not ending.children and not ending.writes


def _succeed(connection: Connection, effects: Effects, endings: list[Succeeded]) -> list[bool]:
    """Record successes: two statements for all of them, then the dependants of all of them."""
    first = {e.claim: n for n, e in reversed(list(enumerate(endings)))}  # a claim can end once, the first time
    if len(first) < len(endings):
        once = _succeed(connection, effects, [endings[n] for n in sorted(first.values())])
        verdict = dict(zip(sorted(first.values()), once, strict=True))
        return [verdict.get(n, False) for n in range(len(endings))]
    now_us = effects.now_us
    recorded = connection.executemany(
        _RECORD, [(e.result, now_us, e.claim.task_id, e.claim.attempt) for e in endings]
    ).rowcount
    accepted = [True] * len(endings)
    if recorded != len(endings):
        accepted = [still_held(connection, e.claim) for e in endings]
        endings = [e for e, ok in zip(endings, accepted, strict=True) if ok]
    connection.executemany(_DROP_RUNNING, [e.claim for e in endings])
    ended = [e.claim.task_id for e in endings]
    effects.ended += ended
    effects.counts["succeeded"] += len(ended)
    release(connection, effects, ended)
    return accepted


def _succeed_with_more(connection: Connection, effects: Effects, ending: Succeeded) -> bool | None:
    """Record a success with its children and writes; None, and nothing, when a write conflicts.

    When the children are refused, or a write is fenced off, it is recorded as a failure. Either concerns this attempt only, so it must not undo the other endings of the transaction.
    """
    inner = Effects(effects.now_us, effects.bounds)
    accepted: bool | None
    connection.execute("SAVEPOINT more")
    try:
        (accepted,) = _succeed(connection, inner, [ending])
        if accepted:
            state.write(connection, inner, ending.writes, task_id=ending.claim.task_id)
            submit(connection, inner, ending.children)
    except ConcurrentModificationError:
        connection.execute("ROLLBACK TO more")
        accepted = None
    except (SubmitError, Fenced) as error:
        connection.execute("ROLLBACK TO more")
        if isinstance(error, Fenced):
            refusal = ErrorInfo(kind="Fenced", message=error.what, fix=error.fix)
        else:
            refusal = ErrorInfo.of_refusal(error)
        accepted = _end_attempt(connection, effects, Failed(ending.claim, refusal))
    else:
        effects.add(inner)
    connection.execute("RELEASE more")
    return accepted


def _end_attempt(connection: Connection, effects: Effects, ending: Ending) -> bool | None:
    """Take one attempt out of `running` and put its task where the ending says."""
    if isinstance(ending, Succeeded):
        return _succeed_with_more(connection, effects, ending)
    claim = ending.claim
    row = connection.execute(_UNRUN, claim).fetchall()
    if not row:
        return False
    failures, crashes, worker_id, queue, place_us, started_us, is_ahead, is_first, has_permits = row[0]
    task_id, attempt = claim
    history = (worker_id, started_us)
    _leave_attempt(
        connection, effects, ending, started_us if is_first and not is_ahead else None, has_permits=has_permits
    )
    match ending:
        case Failed(error=error):
            note(connection, effects, claim, "failed", history=history, error=error)
            counts = (attempt, failures + 1, crashes)
            end(connection, effects, task_id, State.FAILED, error, counts=counts, history=history)
        case Cancelled(reason=reason):
            error = ErrorInfo(kind="cancelled", message=reason)
            note(connection, effects, claim, "cancelled", history=history, error=error)
            counts = (attempt, failures, crashes)
            end(connection, effects, task_id, State.CANCELLED, error, counts=counts, history=history)
        case Retried(due_us=due_us, error=error):
            note(connection, effects, claim, "retried", history=history, error=error)
            effects.counts["retried"] += 1
            counts = (attempt, failures + 1, crashes)
            schedule(connection, effects, task_id, due_us=due_us, reason="retry", counts=counts)
            turn.rest(connection, effects, task_id)
        case Slept(due_us=due_us, reason=reason):
            counts = (attempt, failures, crashes)
            schedule(connection, effects, task_id, due_us=due_us, reason=reason, counts=counts)
            turn.rest(connection, effects, task_id)
        case Parked(reason=reason, asks=asks):
            connection.execute(_PARK, (task_id, attempt, failures, crashes, reason, effects.now_us))
            turn.rest(connection, effects, task_id)
            if ask.put(connection, effects, task_id, asks):
                outside.resume(connection, effects, task_id)
        case GivenBack():
            counts = (attempt, failures, crashes)
            put_back(connection, effects, task_id, queue=queue, place_us=place_us, counts=counts)
        case Preempted():
            turn.rest(connection, effects, task_id)
            outside.place(connection, effects, task_id, (attempt, failures, crashes))
        case Crashed(error=error):
            counts, place = (attempt, failures, crashes + 1), (queue, place_us)
            _crash(connection, effects, claim, error, counts=counts, history=history, place=place)
        case _:
            assert_never(ending)
    return True


def _leave_attempt(
    connection: Connection, effects: Effects, ending: Ending, first_us: int | None, *, has_permits: bool
) -> None:
    """Let go of what an attempt had; note the first start of its task if it leaves nothing in the history."""
    if has_permits:
        over.free(connection, effects, [ending.claim.task_id])
    if first_us is not None and isinstance(ending, Slept | Parked | GivenBack | Preempted):
        wait.begun(connection, ending.claim.task_id, first_us)


def _crash(
    connection: Connection,
    effects: Effects,
    claim: Claim,
    error: ErrorInfo,
    *,
    counts: tuple[int, int, int],
    history: tuple[int | None, int | None],
    place: tuple[str, int],
) -> None:
    """An attempt's process died; the task is ready again at its old `place` (queue, order_us), or poison."""
    note(connection, effects, claim, "crashed", history=history, error=error)
    effects.counts["crashed"] += 1
    crashes_max = connection.execute(_CRASHES_MAX, (claim.task_id,)).fetchone()[0]
    if counts[2] >= crashes_max:
        poison = ErrorInfo(
            kind="poison",
            message=f"its worker died {counts[2]} times while running it; last: {error.message}",
            fix="find what kills the process (memory, a native crash), then `sennit tasks retry`",
        )
        end(connection, effects, claim.task_id, State.FAILED, poison, counts=counts, history=history)
    else:
        put_back(connection, effects, claim.task_id, queue=place[0], place_us=place[1], counts=counts)


def rescue(connection: Connection, effects: Effects, worker_id: int, message: str) -> list[Claim]:
    """Take back all a dead worker held, what it had begun as one crash each, and forget the worker."""
    held = connection.execute(_HELD, (worker_id,)).fetchall()
    error = ErrorInfo(kind="crash", message=message)
    claims = []
    for task_id, attempt, failures, crashes, is_ahead, started_us, queue, place_us in held:
        claims.append(claim := Claim(task_id, attempt))
        connection.execute(_DROP_RUNNING, claim)
        if is_ahead:  # it never ran
            counts = (attempt, failures, crashes)
            put_back(connection, effects, task_id, queue=queue, place_us=place_us, counts=counts)
            continue
        counts, history = (attempt, failures, crashes + 1), (worker_id, started_us)
        _crash(connection, effects, claim, error, counts=counts, history=history, place=(queue, place_us))
    if claims:
        over.free(connection, effects, [claim.task_id for claim in claims])  # also what another process has for them
    over.free_worker(connection, effects, worker_id)
    connection.execute(_DROP_WORKER, (worker_id,))
    connection.execute(_DROP_STOPS, (worker_id,))
    return claims


def still_held(connection: Connection, claim: Claim) -> bool:
    """True while the claim token is valid."""
    row = connection.execute(
        "SELECT 1 FROM sennit_running WHERE id = ? AND attempt = ?", (claim.task_id, claim.attempt)
    ).fetchone()
    return row is not None
