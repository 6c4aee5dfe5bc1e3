"""`sennit status`: the fleet at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from sennit.cli.budgets import budget_json, spent_words, whose
from sennit.cli.opening import existing, reading, schema_of
from sennit.cli.output import (
    clipped,
    emit,
    ledger_json,
    ledger_line,
    rfc3339,
    route_json,
    route_words,
    safe,
    size,
    span,
    table,
    traits,
    worker_json,
)
from sennit.cli.provider_view import count, in_use_words, provider_json, state_words
from sennit.cli.questions import needs_you, open_questions
from sennit.cli.shared import Shared, examples, pass_shared, shared_options
from sennit.cli.waits import SUMMED_MAX, held_back, summed, waited_json, waited_us, waited_words
from sennit.model.lifecycle import LIVE, State
from sennit.model.provider import BudgetView, ProviderView
from sennit.model.task import Ledger, RouteView, WorkerInfo
from sennit.model.thread import AskView
from sennit.runtime.stores import is_postgres, sqlite_path
from sennit.store.protocol import Store
from sennit.store.urls import without_password

_COLUMNS = [State.WAITING, State.SCHEDULED, State.READY, State.RUNNING, State.SUSPENDED]
assert set(_COLUMNS) == LIVE  # noqa: S101 - a new state must get its column

PROVIDERS_SHOWN: Final = 20
BUDGETS_SHOWN: Final = 10
REASONS_SHOWN: Final = 12
ROUTES_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Seen:
    """What was looked at, in this order: workers and tasks go on meanwhile.

    Attributes:
        server: version, schema and connections; None for a file.
        routes: what open tasks need of their worker.
        held_back: what the newest open tasks wait for → how many do.
        waited_us: reason → µs, of the newest tasks together; `waited_tasks` says of how many.
    """

    url: str
    server: Mapping[str, Any] | None
    n_bytes: int | None
    now_us: int
    counts: Mapping[str, Mapping[State, int]]
    workers: Sequence[WorkerInfo]
    routes: Sequence[RouteView]
    providers: Sequence[ProviderView]
    budgets: Sequence[BudgetView]
    held_back: Mapping[str, int]
    waited_us: Mapping[str, int]
    waited_tasks: int
    asks: Sequence[AskView]
    ledger: Ledger


@click.command(epilog=examples("sennit status --json | jq .needs_you.waiting"))
@shared_options()
@pass_shared
def status(shared: Shared) -> None:
    """Show queues, workers, providers, what tasks wait and have waited for, open questions, and the ledger.

    Waits are those of the newest 1,000 tasks.
    """
    with existing(shared.url) as store:
        seen = _look(store)
    if shared.json:
        emit(_json(seen))
    else:
        _print(seen)


def _look(store: Store) -> Seen:
    counts, workers = store.counts().result(), store.workers().result()
    held = held_back(store.tasks(states=sorted(LIVE), limit=SUMMED_MAX).result())
    waited = waited_us(store, store.tasks(limit=SUMMED_MAX).result())
    return Seen(
        url=without_password(store.url),
        server=(server := _server_of(store.url)),
        n_bytes=_bytes_of(store) if server is None else server["bytes"],
        now_us=store.now_us(),
        counts=counts,
        workers=workers,
        routes=store.routes().result(),
        providers=store.providers().result(),
        budgets=store.budgets().result(),
        held_back=held,
        waited_us=summed(waited.values()),
        waited_tasks=len(waited),
        asks=open_questions(store),
        ledger=store.ledger().result(),
    )


def _server_of(url: str) -> Mapping[str, Any] | None:
    """Return what is to be known of a server; None for a file."""
    if not is_postgres(url):
        return None
    from sennit.store.postgres_facts import server_facts, sessions_of

    schema = schema_of(url)
    with reading(url) as reader:
        facts, sessions = reader.put(server_facts).result(), reader.put(sessions_of).result()
    wanted = ("server_version", "bytes", "connections_max", "connections_all")
    return {**{name: facts[name] for name in wanted}, "schema": schema.found, "connections": sessions}


def _bytes_of(store: Store) -> int:
    """Return the size of the file."""
    path = sqlite_path(store.url)
    total = 0
    for file in (path, path.with_name(path.name + "-wal")):
        with suppress(FileNotFoundError):
            total += Path(file).stat().st_size
    return total


def _queues(seen: Seen) -> dict[str, tuple[list[int], int]]:
    """Return queue → live tasks by column, and slots of all workers."""
    slots: dict[str, int] = {}
    for worker in seen.workers:
        for queue, n in worker.queues.items():
            slots[queue] = slots.get(queue, 0) + n
    names = sorted(seen.counts.keys() | slots.keys())
    return {name: ([seen.counts.get(name, {}).get(s, 0) for s in _COLUMNS], slots.get(name, 0)) for name in names}


def _versions(seen: Seen) -> list[dict[str, Any]]:
    """Return each version of the code: its workers, and the open tasks that only they may run. At 0 it may be stopped."""
    names = {w.version for w in seen.workers if w.role == "worker"} | {view.version for view in seen.routes}
    return [
        {
            "version": name,
            "workers": sum(w.role == "worker" and w.version == name for w in seen.workers),
            "running": sum(w.running for w in seen.workers if w.version == name),
            "pinned": sum(view.live for view in seen.routes if view.version == name),
        }
        for name in sorted(names - {""})
    ]


def _worth_showing(budgets: Sequence[BudgetView]) -> list[BudgetView]:
    """Return those that are spent, and those of which there is one: not those of each task."""
    return [view for view in budgets if view.is_exceeded or view.budget.scope in {"fleet", "provider"}]


def _json(seen: Seen) -> dict[str, Any]:
    return {
        "schema": "sennit.status/1",
        "store": {"url": seen.url, "bytes": seen.n_bytes, "server": seen.server},
        "queues": [
            {"queue": name, **{str(s): n for s, n in zip(_COLUMNS, numbers, strict=True)}, "slots": slots}
            for name, (numbers, slots) in _queues(seen).items()
        ],
        "workers": [worker_json(worker) for worker in seen.workers],
        "routes": [route_json(view) for view in seen.routes],
        "versions": _versions(seen),
        "providers": [provider_json(view) for view in seen.providers],
        "budgets": [budget_json(view) for view in _worth_showing(seen.budgets)],
        "held_back": seen.held_back,
        "waited_s": waited_json(seen.waited_us),
        "waited_tasks": seen.waited_tasks,
        "needs_you": {"waiting": len(seen.asks), "oldest_at": rfc3339(seen.asks[0].created_us) if seen.asks else None},
        "ledger": ledger_json(seen.ledger),
    }


def _print(seen: Seen) -> None:
    working = [w for w in seen.workers if w.role == "worker"]
    how_large = "" if seen.n_bytes is None else f" ({size(seen.n_bytes)})"
    click.echo(f"store    {seen.url}{how_large}   workers {len(working)}")
    if seen.server is not None:
        server = seen.server
        click.echo(
            f"server   PostgreSQL {server['server_version']}, schema {server['schema']}, "
            f"{sum(server['connections'].values())} connections of sennit ({server['connections_all']} of at most "
            f"{server['connections_max']} in all)"
        )
    click.echo()
    queues = _queues(seen)
    if queues:
        head = ["queue", *(str(s) for s in _COLUMNS), "slots"]
        rows = [[name, *(f"{n:,}" for n in numbers), f"{slots:,}"] for name, (numbers, slots) in queues.items()]
        table(head, rows, right=frozenset(head[1:]))
        click.echo()
    for w in working:
        served = " ".join(f"{queue}:{n}" for queue, n in sorted(w.queues.items()))
        up = span((seen.now_us - w.started_us) / 1e6)
        click.echo(
            f"worker {w.id}  pid {w.pid} on {w.host}  up {up}  running {w.running}  {served}{traits(w, seen.now_us)}"
        )
    _print_routes(seen)
    _print_providers(seen)
    if seen.held_back:
        shown = [f"{n:,} {safe(clipped(what, 60))}" for what, n in list(seen.held_back.items())[:REASONS_SHOWN]]
        click.echo(f"waiting  {', '.join(shown)}{_more(len(seen.held_back) - REASONS_SHOWN)}")
    if words := waited_words(seen.waited_us):
        click.echo(f"waited   {words}   (the last {count(seen.waited_tasks, 'task')} together)")
    if seen.asks:
        click.echo(f"needs you {needs_you(seen.asks, seen.now_us)} → sennit inbox")
    click.echo(f"ledger   {ledger_line(seen.ledger)}")


def _print_routes(seen: Seen) -> None:
    for version in _versions(seen):
        may_stop = "  none waits for it" if not version["pinned"] else ""
        click.echo(
            f"version  {safe(version['version'])}  {count(version['workers'], 'worker')}, "
            f"{count(version['pinned'], 'open task')} pinned to it{may_stop}"
        )
    for view in seen.routes[:ROUTES_SHOWN]:
        able = count(view.workers, "worker") if view.workers else "no worker"
        words = f"{view.live:,} open, {view.ready:,} ready: {able} with {route_words(view)}"
        click.echo(f"needs    {safe(clipped(view.queue, 40))}  {safe(words)}")
    if more := len(seen.routes[ROUTES_SHOWN:]):
        click.echo(f"         and {more:,} more: sennit status --json")


def _print_providers(seen: Seen) -> None:
    for view in seen.providers[:PROVIDERS_SHOWN]:
        waiting = f"{view.waiting + view.ready:,} waiting"
        state = state_words(view, seen.now_us)
        click.echo(f"provider {safe(view.spec.name)}  {in_use_words(view)}, {waiting}  {state}")
    budgets = _worth_showing(seen.budgets)
    for budget in sorted(budgets, key=lambda view: not view.is_exceeded)[:BUDGETS_SHOWN]:
        cost, tokens = spent_words(budget)
        is_spent = "  spent" if budget.is_exceeded else ""
        click.echo(f"budget   {clipped(whose(budget.budget), 60)}  {cost}, {tokens} tokens{is_spent}")
    left = len(seen.providers[PROVIDERS_SHOWN:]) + len(budgets[BUDGETS_SHOWN:])
    if left:
        click.echo(f"         and {left:,} more: sennit providers ls, sennit providers budget")


def _more(n: int) -> str:
    return f" and {n:,} more" if n > 0 else ""
