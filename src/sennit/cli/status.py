"""`sennit status`: the fleet at a glance, of one moment."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from sennit.cli.opening import existing
from sennit.cli.output import emit, ledger_json, ledger_line, rfc3339, size, span, table, worker_json
from sennit.cli.questions import needs_you, open_questions
from sennit.cli.shared import Shared, examples, pass_shared, shared_options
from sennit.model.lifecycle import LIVE, State
from sennit.model.task import Ledger, WorkerInfo
from sennit.model.thread import AskView
from sennit.runtime.stores import sqlite_path
from sennit.store.protocol import Store

_COLUMNS = [State.WAITING, State.SCHEDULED, State.READY, State.RUNNING, State.SUSPENDED]
assert set(_COLUMNS) == LIVE  # noqa: S101 - a new state must get its column


@click.command(epilog=examples("sennit status --json | jq .needs_you.waiting"))
@shared_options()
@pass_shared
def status(shared: Shared) -> None:
    """Show queues, workers, the questions that wait for somebody, and the ledger."""
    with existing(shared.url) as store:
        counts = store.counts().result()
        workers = store.workers().result()
        asks = open_questions(store)
        ledger = store.ledger().result()
        if shared.json:
            emit(_json(store, counts, workers, asks, ledger))
        else:
            _print(store, counts, workers, asks, ledger)


def _bytes_of(store: Store) -> int:
    path = sqlite_path(store.url)
    total = 0
    for file in (path, path.with_name(path.name + "-wal")):
        with suppress(FileNotFoundError):
            total += Path(file).stat().st_size
    return total


def _queues(counts: Mapping[str, Mapping[State, int]], workers: list[WorkerInfo]) -> dict[str, tuple[list[int], int]]:
    """Return queue → live tasks by column, and slots of all workers."""
    slots: dict[str, int] = {}
    for worker in workers:
        for queue, n in worker.queues.items():
            slots[queue] = slots.get(queue, 0) + n
    names = sorted(counts.keys() | slots.keys())
    return {name: ([counts.get(name, {}).get(s, 0) for s in _COLUMNS], slots.get(name, 0)) for name in names}


def _json(
    store: Store,
    counts: Mapping[str, Mapping[State, int]],
    workers: list[WorkerInfo],
    asks: list[AskView],
    ledger: Ledger,
) -> dict[str, Any]:
    return {
        "schema": "sennit.status/1",
        "store": {"url": store.url, "bytes": _bytes_of(store)},
        "queues": [
            {"queue": name, **{str(s): n for s, n in zip(_COLUMNS, numbers, strict=True)}, "slots": slots}
            for name, (numbers, slots) in _queues(counts, workers).items()
        ],
        "workers": [worker_json(worker) for worker in workers],
        "needs_you": {"waiting": len(asks), "oldest_at": rfc3339(asks[0].created_us) if asks else None},
        "ledger": ledger_json(ledger),
    }


def _print(
    store: Store,
    counts: Mapping[str, Mapping[State, int]],
    workers: list[WorkerInfo],
    asks: list[AskView],
    ledger: Ledger,
) -> None:
    working = [w for w in workers if w.role == "worker"]
    click.echo(f"store    {store.url} ({size(_bytes_of(store))})   workers {len(working)}\n")
    queues = _queues(counts, workers)
    if queues:
        head = ["queue", *(str(s) for s in _COLUMNS), "slots"]
        rows = [[name, *(f"{n:,}" for n in numbers), f"{slots:,}"] for name, (numbers, slots) in queues.items()]
        table(head, rows, right=frozenset(head[1:]))
        click.echo()
    now_us = store.now_us()
    for w in working:
        served = " ".join(f"{queue}:{n}" for queue, n in sorted(w.queues.items()))
        up = span((now_us - w.started_us) / 1e6)
        click.echo(f"worker {w.id}  pid {w.pid} on {w.host}  up {up}  running {w.running}  {served}")
    if asks:
        click.echo(f"needs you {needs_you(asks, now_us)} → sennit inbox")
    click.echo(f"ledger   {ledger_line(ledger)}")
