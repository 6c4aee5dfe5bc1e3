"""`sennit map`: one task per line of a file, all of them followed to their ends.

    lines ─► calls, all parsed ─► at most --limit live at a time ─► ends, as they come ─► JSON Lines

Ends arrive by the store's watches, so nothing is asked twice and a bar is redrawn only when something has happened.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from queue import Empty, SimpleQueue
from typing import IO, Any, Final

import click

from sennit.cli.calls import call_of_line
from sennit.cli.discover import load_app
from sennit.cli.output import emit, raw
from sennit.cli.progress import Progress
from sennit.cli.shared import Shared, pass_shared, shared_options
from sennit.model.lifecycle import State
from sennit.model.task import Outcome
from sennit.runtime.app import App
from sennit.store.urls import without_password
from sennit.submit.registry import Call
from sennit.sync.ack import Ack
from sennit.sync.clock import monotonic_s

# How many are handed in by one transaction: the commit is shared, and the first ones start while the rest are stored.
BATCH: Final = 1000

Ended = tuple[int, int, Ack[Outcome]]


@click.command(name="map")
@click.argument("target", metavar="MODULE:APP")
@click.argument("handler")
@click.argument("inputs", type=click.File(encoding="utf-8"), metavar="FILE.jsonl|-")
@click.option("--limit", type=click.IntRange(1), help="How many may be live at a time; default: all.")
@click.option("--progress/--no-progress", default=None, help="On stderr; default: unless --quiet.")
@shared_options()
@pass_shared
def map_(
    shared: Shared, target: str, handler: str, inputs: IO[str], *, limit: int | None, progress: bool | None
) -> int:
    """Hand in one task of HANDLER per line and wait for all.

    A line is JSON: an object names the arguments, an array lists them, anything else is the only one. With --json
    each end is one line, in the order of the ends; `index` counts the input lines from 0. Exit 1 if one has failed,
    else 6 if one was cancelled. Workers must be running: sennit worker MODULE:APP.
    """
    shared.start_logging()
    app = load_app(target)
    if shared.db:
        app.use(shared.db)
    found = app.registry.find(handler)
    lines = [(n, line) for n, line in enumerate(inputs, 1) if line.strip()]
    calls = [call_of_line(found, line, n, {}) for n, line in lines]
    with closing(app):
        wanted = shared.verbosity >= 0 if progress is None else progress
        bar = _bar(shared, len(calls)) if wanted and calls else None
        counts = _follow(shared, app, _Fleet(app, calls, limit or len(calls)), bar)
    if not shared.json:
        click.echo(", ".join(f"{n:,} {state}" for state, n in counts.items() if n) or "no input")
    return 1 if counts[State.FAILED] else 6 if counts[State.CANCELLED] else 0


def _bar(shared: Shared, total: int) -> Progress:
    log = shared.log_lines
    assert log is not None  # noqa: S101 - started above
    return Progress(total, clock_s=monotonic_s, live=log.live if sys.stderr.isatty() else None, say=log.say)


class _Fleet:
    """The calls on their way: hands in as many as may be live, and queues the ends."""

    def __init__(self, app: App, calls: list[Call], limit: int) -> None:
        self._app = app
        self._rest = iter(enumerate(calls))
        self.total = len(calls)
        self.queue = calls[0].options.queue if calls else ""
        self.ended: SimpleQueue[Ended] = SimpleQueue()
        self.hand_in(limit)

    def hand_in(self, n: int) -> None:
        """Hand in the next `n`."""
        while batch := list(islice(self._rest, min(n, BATCH))):
            n -= len(batch)
            handles = self._app.submit_many([call for _, call in batch])
            for (index, _), handle in zip(batch, handles, strict=True):
                self._watch(index, handle.id)

    def _watch(self, index: int, task_id: int) -> None:
        watched = self._app.store.watch(task_id)
        watched.add_done_callback(lambda ack: self.ended.put((index, task_id, ack)))

    def ends(self, notice_s: float) -> Iterator[Ended | None]:
        """Yield the ends as they come, and None once if the first takes longer than `notice_s`."""
        timeout_s: float | None = notice_s
        left = self.total
        while left:
            try:
                yield self.ended.get(timeout=timeout_s)
            except Empty:
                yield None
            else:
                left -= 1
            timeout_s = None


def _follow(shared: Shared, app: App, fleet: _Fleet, bar: Progress | None) -> dict[State, int]:
    """Take every end; return how many there were of each kind."""
    counts = {State.SUCCEEDED: 0, State.FAILED: 0, State.CANCELLED: 0}
    try:
        for end in fleet.ends(app.settings.no_worker_notice_s):
            if end is None:
                _say_if_nobody_works(app, fleet.queue)
                continue
            index, task_id, watched = end
            outcome = watched.result()
            counts[outcome.state] += 1
            fleet.hand_in(1)
            if shared.json:
                emit(_line(index, task_id, outcome))
            if bar is not None:
                bar.advance(ok=outcome.state is State.SUCCEEDED)
    except KeyboardInterrupt:
        click.echo(
            f"\nstopped waiting; what was handed in goes on: sennit tasks ls --db {without_password(app.url)}", err=True
        )
        raise
    finally:
        if bar is not None:
            bar.close()
    return counts


def _line(index: int, task_id: int, outcome: Outcome) -> dict[str, Any]:
    error = None if outcome.error is None else {"kind": outcome.error.kind, "message": outcome.error.message}
    return {
        "schema": "sennit.map/1",
        "index": index,
        "id": task_id,
        "state": str(outcome.state),
        "attempt": outcome.attempt,
        "result": raw(outcome.result),
        "error": error,
    }


def _say_if_nobody_works(app: App, queue: str) -> None:
    workers = app.store.workers().result()
    if not any(w.role == "worker" and queue in w.queues for w in workers):
        click.echo(
            f"no worker serves queue {queue!r}; start one: sennit worker MODULE:APP --db {without_password(app.url)}",
            err=True,
        )
