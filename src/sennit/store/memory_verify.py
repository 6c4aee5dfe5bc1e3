"""The promises that `verify` checks in the memory store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sennit.model.lifecycle import State
from sennit.store.memory_look import ledger
from sennit.store.memory_rows import Row, Rows


def verify(rows: Rows) -> list[str]:
    """Return every broken promise as a sentence."""
    parts = (
        _broken_rows,
        _broken_indexes,
        _broken_counts,
        _broken_turns,
        _broken_room,
        _broken_asks,
        _broken_memory,
        _broken_permits,
    )
    return [sentence for part in parts for sentence in part(rows)]


def _broken_rows(rows: Rows) -> Iterator[str]:
    for row in rows.tasks.values():
        if row.state is State.WAITING:
            needs = rows.open_parents(row) + (row.gated or not rows.turns.holds(row))
            if row.need != needs:
                yield f"task {row.id} waits for {row.need} things and it should be {needs}"
        if row.state is State.WAITING and not row.need:
            yield f"task {row.id} waits for nothing"
        if row.state.live == (row.done_us is not None):
            yield f"task {row.id} is {row.state} and done_us is {row.done_us}"
        if (row.state is State.SCHEDULED) != (row.due_us is not None):
            yield f"task {row.id} is {row.state} and due_us is {row.due_us}"
        if (row.state is State.RUNNING) != (row.worker_id is not None):
            yield f"task {row.id} is {row.state} and worker_id is {row.worker_id}"
        if row.is_ahead and row.state is not State.RUNNING:
            yield f"task {row.id} is {row.state} and claimed ahead"


def _broken_indexes(rows: Rows) -> Iterator[str]:
    ready = {row.id for queue in rows.ready.queues for row in rows.ready.rows(queue)}
    timers = {(due_us, task_id) for due_us, task_id, kind in rows.dues if kind == "timer"}
    held = {(worker_id, task_id) for worker_id, tasks in rows.held.items() for task_id in tasks}
    for row in rows.tasks.values():
        if row.state is State.READY and row.id not in ready:
            yield f"task {row.id} is ready and cannot be claimed"
        if row.due_us is not None and (row.due_us, row.id) not in timers:
            yield f"task {row.id} is scheduled and no timer will wake it"
        if row.worker_id is not None and (row.worker_id, row.id) not in held:
            yield f"task {row.id} runs and worker {row.worker_id} does not hold it"
        if row.key is not None and rows.keys.get((row.spec.handler, row.key)) != row.id:
            yield f"task {row.id} has the key {row.key!r} and is not found by it"
    queued = Counter(row.spec.queue for row in rows.tasks.values() if row.state is State.READY)
    if +rows.queued != queued:
        yield f"{dict(queued)} tasks are ready and {dict(+rows.queued)} are counted"
    for worker_id, task_id in held:
        if task_id not in rows.tasks or rows.tasks[task_id].worker_id != worker_id:
            yield f"worker {worker_id} holds task {task_id}, which it does not run"


def _broken_counts(rows: Rows) -> Iterator[str]:
    kept = ledger(rows)
    if not kept.balanced:
        yield f"the ledger says {kept.submitted} submitted and {kept.missing} of them are missing"
    ended = sum(not row.state.live for row in rows.tasks.values())
    if kept.succeeded + kept.failed + kept.cancelled != ended + kept.pruned:
        yield f"the ledger counts other ends than the {ended} stored and {kept.pruned} pruned tasks"


def _broken_turns(rows: Rows) -> Iterator[str]:
    turns = rows.turns
    for thread_id, line in turns.lines.items():
        holder = turns.holders.get(thread_id)
        if holder is None or next(iter(line)) != holder:
            yield f"task {holder} has the turn of thread {thread_id!r}, and {next(iter(line), None)} is first in it"
    for thread_id in turns.holders.keys() - turns.lines.keys():
        yield f"task {turns.holders[thread_id]} has the turn of thread {thread_id!r}, which has no open task"
    stand = {(row.id, thread_id) for thread_id, line in turns.lines.items() for row in line.values()}
    belong = {(row.id, row.spec.thread_id or "") for row in _open_in_threads(rows)}
    for task_id, thread in stand ^ belong:
        yield f"task {task_id} is {'in' if (task_id, thread) in stand else 'not in'} the line of thread {thread!r}"
    for row in _open_in_threads(rows):
        if row.state is not State.WAITING and not turns.holds(row):
            yield f"task {row.id} is {row.state} and does not have the turn of its thread"
    behind = Counter(row.spec.queue for row in _open_in_threads(rows) if not turns.holds(row))
    if +turns.behind != behind:
        yield f"{dict(behind)} tasks wait for their turn and {dict(+turns.behind)} are counted"


def _broken_room(rows: Rows) -> Iterator[str]:
    turns = rows.turns
    active = {row.id for row in _open_in_threads(rows) if row.state in (State.READY, State.RUNNING)}
    if turns.active != active:
        yield f"tasks {sorted(turns.active ^ active)} have room and are not ready or running, or the other way round"
    gated = {row.id for row in rows.tasks.values() if row.gated}
    if turns.gated.keys() != gated:
        yield f"tasks {sorted(turns.gated.keys() ^ gated)} wait for room and will get none, or the other way round"
    for row in turns.gated.values():
        if row.state is not State.WAITING or not turns.holds(row):
            yield f"task {row.id} is {row.state} and waits for room"


def _open_in_threads(rows: Rows) -> Iterator[Row]:
    return (row for row in rows.tasks.values() if row.state.live and row.spec.thread_id is not None)


def _broken_asks(rows: Rows) -> Iterator[str]:
    expiries = set(rows.asks.expiries)
    for ask in rows.asks.by_id.values():
        row = rows.tasks.get(ask.task_id)
        if row is None or rows.asks.by_task.get(row.id, {}).get(ask.spec.key) is not ask:
            yield f"question {ask.id} is not found by its task {ask.task_id} and key {ask.spec.key!r}"
            continue
        if ask.state == "open":
            if not row.state.live:
                yield f"question {ask.id} is open and its task {row.id} has {row.state}"
            if ask.expires_us is not None and (ask.expires_us, ask.id) not in expiries:
                yield f"question {ask.id} expires and no timer says so"
        elif ask.state != "void" and ask.spec.key not in row.steps:
            yield f"question {ask.id} is {ask.state} and task {row.id} does not know it"
        if (ask.state == "open") != (ask.closed_us is None):
            yield f"question {ask.id} is {ask.state} and closed_us is {ask.closed_us}"


def _broken_memory(rows: Rows) -> Iterator[str]:
    for (thread_id, name), chain in rows.states.chains.items():
        versions = list(chain.versions)
        if not versions or versions != sorted(versions) or chain.dropped > max(chain.present - 1, chain.forgotten):
            yield f"the {name} of thread {thread_id!r} has the versions {versions}, without data up to {chain.dropped}"
        made = {v.operation_id: n for n, v in chain.versions.items() if v.operation_id is not None}
        if made != chain.operations:
            yield f"the {name} of thread {thread_id!r} remembers other operations than its versions do"
    for (handler, key), cached in rows.cache.calls.items():
        if cached.task_id not in rows.tasks:
            yield f"task {cached.task_id}, which is not stored, stands for the call {key!r} of {handler}"


def _broken_permits(rows: Rows) -> Iterator[str]:
    providers = rows.providers
    for held in providers.permits.held.values():
        if held.permit.provider not in providers.known:
            yield f"permit {held.permit.id} is of provider {held.permit.provider!r}, which is not known"
        row = rows.tasks.get(held.permit.id) if held.is_of_claim else None
        if held.is_of_claim and (row is None or row.worker_id != held.holder):
            yield f"permit {held.permit.id} came with a claim, and worker {held.holder} does not run that task"
    for waiting in providers.permits.waiting.values():
        if waiting.request.id in providers.permits.held:
            yield f"call {waiting.request.id} waits for the permit that it holds"
        if waiting.ack.done:
            yield f"call {waiting.request.id} waits and has its answer"
        if waiting.line not in providers.blocked:
            yield f"call {waiting.request.id} waits, and tasks may overtake it"
    for scope, key in providers.budgets.accounts:
        if providers.budgets.accounts[scope, key].bounds is None and (scope, "") not in providers.budgets.accounts:
            yield f"the budget of {scope} {key!r} follows none"
