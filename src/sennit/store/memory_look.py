"""What the memory store shows: views of rows, of threads and of asks, and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from sennit.limit import governor
from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.provider import ProviderView, split_name
from sennit.model.task import Ledger, Outcome, RouteView, TaskView, WorkerInfo
from sennit.model.thread import AskKind, AskState, AskView, ThreadView
from sennit.store.memory_asks import Ask
from sennit.store.memory_rows import Row, Rows
from sennit.store.routes import is_rival, no_worker, route_view


def outcome(row: Row) -> Outcome:
    """Return how an ended task ended."""
    return Outcome(state=row.state, attempt=row.attempt, result=row.result, error=row.error)


def view(rows: Rows, row: Row, workers: Sequence[WorkerInfo], *, full: bool) -> TaskView:
    """Return one task as others see it; payload and result only when `full`."""
    spec = row.spec
    return TaskView(
        id=row.id,
        handler=spec.handler,
        queue=spec.queue,
        state=row.state,
        priority=Priority(spec.priority),
        attempt=row.attempt,
        failures=row.failures,
        crashes=row.crashes,
        thread_id=spec.thread_id,
        key=row.key,
        parent_id=spec.parent_id,
        created_us=row.created_us,
        due_us=row.due_us,
        started_us=row.started_us,
        done_us=row.done_us,
        waiting_for=row.need if row.state is State.WAITING else 0,
        worker_id=row.worker_id,
        reason=_reason(rows, row, workers),
        provider=spec.provider,
        route=spec.route,
        result=row.result if full else None,
        error=row.error,
        payload=spec.payload if full else b"",
    )


def _reason(rows: Rows, row: Row, workers: Sequence[WorkerInfo]) -> str:
    if row.state is State.READY:
        if row.spec.route and not any(worker.may_run(row.spec.route, row.spec.queue) for worker in workers):
            return no_worker(row.spec.route)
        return rows.providers.reason(row)
    if row.is_ahead:
        return "ahead"
    if row.state is not State.WAITING:
        return row.reason
    if row.gated:
        return "threads_max"
    return "" if rows.turns.holds(row) else "thread"


def select(
    rows: Rows,
    workers: Sequence[WorkerInfo],
    *,
    states: Sequence[State],
    queue: str | None,
    handler: str | None,
    thread_id: str | None,
    limit: int,
) -> list[TaskView]:
    """Return the newest tasks that match, newest first."""
    found: list[TaskView] = []
    for task_id in sorted(rows.tasks, reverse=True):
        if len(found) == limit:
            break
        row = rows.tasks[task_id]
        wanted = ((queue, row.spec.queue), (handler, row.spec.handler), (thread_id, row.spec.thread_id))
        if (not states or row.state in states) and all(want in (None, have) for want, have in wanted):
            found.append(view(rows, row, workers, full=False))
    return found


def counts(rows: Rows) -> dict[str, dict[State, int]]:
    """Return queue → state → number of live tasks."""
    counted: dict[str, dict[State, int]] = {}
    for (queue, state), n in Counter((r.spec.queue, r.state) for r in rows.tasks.values() if r.state.live).items():
        counted.setdefault(queue, {})[state] = n
    return counted


def routes(rows: Rows, workers: Sequence[WorkerInfo]) -> list[RouteView]:
    """Return what open tasks need of their worker."""
    live = Counter((r.spec.queue, r.spec.route) for r in rows.tasks.values() if r.state.live and r.spec.route)
    ready = Counter((r.spec.queue, r.spec.route) for r in rows.tasks.values() if r.state is State.READY)
    return [route_view(*key, live=n, ready=ready[key], workers=workers) for key, n in sorted(live.items())]


def ledger(rows: Rows) -> Ledger:
    """Return the counts; `live` comes from the rows, the others were kept move by move."""
    live = sum(row.state.live for row in rows.tasks.values())
    kept = ("submitted", "succeeded", "failed", "cancelled", "retried", "crashed", "refused", "pruned")
    return Ledger(live=live, **{name: rows.tally[name] for name in kept})


def position(rows: Rows, row: Row, workers: Sequence[WorkerInfo]) -> int | None:
    """Return how many tasks are claimed before one that is ready, or waits for its turn; None for another one."""
    if row.state is State.READY:
        line = rows.ready.rows(row.spec.queue)
        ahead = line[: line.index(row)]
        rivals = {
            other.spec.route for other in ahead if is_rival(other.spec.route, row.spec.route, row.spec.queue, workers)
        }
        return sum(other.spec.route in rivals for other in ahead)
    if row.state is not State.WAITING or row.spec.thread_id is None or rows.turns.holds(row):
        return None
    return rows.turns.line(row.spec.thread_id).index(row)


# ---------------------------------------------------------------- providers


def ready_for(rows: Rows, provider: str) -> int:
    """Return how many ready tasks ask for a provider, whichever model."""
    return sum(
        split_name(row.spec.provider)[0] == provider for queue in rows.ready.queues for row in rows.ready.rows(queue)
    )


def provider(rows: Rows, name: str) -> ProviderView:
    """Return one provider as others see it.

    Raises:
        ProviderNotFound: not known.
    """
    providers = rows.providers
    known, in_use = providers.find(name), providers.permits.in_use(name)
    facts = governor.facts(known.spec, known.state, providers.now_us, in_use=in_use)
    return ProviderView(
        spec=known.spec,
        limit=facts.limit,
        in_use=in_use,
        waiting=providers.permits.waiting_for(name),
        ready=ready_for(rows, name),
        closed_until_us=facts.closed_until_us,
        reason=facts.reason,
        pause=facts.pause,
        breaker=facts.breaker,
        **msgspec.structs.asdict(facts.counts),
    )


# ---------------------------------------------------------------- threads and asks


def threads(rows: Rows, *, limit: int) -> list[ThreadView]:
    """Return threads that have an open task or a state: those with open tasks first, then the last written first."""
    names = rows.turns.lines.keys() | rows.states.known()
    views = [_thread(rows, thread_id) for thread_id in sorted(names)]
    return sorted(views, key=lambda v: (not v.open_tasks, -v.changed_us))[:limit]


def _thread(rows: Rows, thread_id: str) -> ThreadView:
    line, state = rows.turns.line(thread_id), rows.states.state(thread_id)
    asked = (ask for row in line for ask in rows.asks.by_task.get(row.id, {}).values())
    return ThreadView(
        thread_id=thread_id,
        holder_id=line[0].id if line else None,
        open_tasks=len(line),
        asks=sum(ask.state == "open" and ask.spec.kind == "ask" for ask in asked),
        version=state.version,
        changed_us=state.at_us,
    )


def ask_view(rows: Rows, ask: Ask) -> AskView:
    """Return one ask as others see it."""
    spec = rows.tasks[ask.task_id].spec
    return AskView(
        id=ask.id,
        task_id=ask.task_id,
        handler=spec.handler,
        thread_id=spec.thread_id,
        spec=ask.spec,
        state=ask.state,
        version=ask.version,
        level=ask.level,
        assignee=ask.assignee,
        created_us=ask.created_us,
        expires_us=ask.expires_us,
        closed_us=ask.closed_us,
        answer=ask.answer,
    )


def select_asks(
    rows: Rows,
    *,
    states: Sequence[AskState],
    thread_id: str | None,
    task_id: int | None,
    assignee: str | None,
    kind: AskKind,
    after_id: int,
    newest_first: bool,
    limit: int,
) -> list[AskView]:
    """Return questions that match, or waits for events: oldest first, or newest."""
    found: list[AskView] = []
    asks = rows.asks.by_id.values()
    for ask in reversed(asks) if newest_first else asks:
        if len(found) == limit:
            break
        if ask.id <= after_id:
            continue
        mine = rows.tasks[ask.task_id].spec.thread_id
        wanted = ((thread_id, mine), (task_id, ask.task_id), (assignee, ask.assignee), (kind, ask.spec.kind))
        if (not states or ask.state in states) and all(want in (None, have) for want, have in wanted):
            found.append(ask_view(rows, ask))
    return found
