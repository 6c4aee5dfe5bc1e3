"""`sennit tasks`: look at tasks, wait for them, end them, start them again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import click

from sennit.cli.commits import Commits
from sennit.cli.group import Group
from sennit.cli.opening import existing
from sennit.cli.output import emit, log_json, raw, rfc3339, span, table, task_json
from sennit.cli.shared import Shared, pass_shared, shared_options
from sennit.errors import ResultTimeout
from sennit.model.lifecycle import State
from sennit.model.task import Outcome, TaskView
from sennit.runtime.stores import sqlite_path
from sennit.store.protocol import Store
from sennit.sync.ack import Ack
from sennit.sync.clock import monotonic_s

# Exit codes; the table of docs/reference/cli.md.
FAILED: Final = 1
CONFLICT: Final = 4
CANCELLED: Final = 6

LOG_LINES_AT_ONCE: Final = 1000

task_ids = click.argument("task_ids", nargs=-1, required=True, type=click.IntRange(1), metavar="ID...")
task_id = click.argument("task_id", type=click.IntRange(1), metavar="ID")


@click.group(cls=Group, invoke_without_command=True)
@shared_options()
@click.pass_context
def tasks(ctx: click.Context) -> None:
    """List, look at, wait for, cancel and retry tasks; alone it means `ls`."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(ls)


# ---------------------------------------------------------------- looking


@tasks.command()
@click.option("--state", "states", multiple=True, type=click.Choice([str(s) for s in State]), help="May be repeated.")
@click.option("--queue", help="Only of this queue.")
@click.option("--handler", help="Only of this handler, by its full name.")
@click.option("--thread-id", help="Only of this conversation.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at most.")
@shared_options()
@pass_shared
def ls(
    shared: Shared,
    *,
    states: Sequence[str] = (),
    queue: str | None = None,
    handler: str | None = None,
    thread_id: str | None = None,
    limit: int = 100,
) -> None:
    """List tasks, the newest first."""
    wanted = [State(s) for s in states]
    with existing(shared.url) as store:
        found = store.tasks(states=wanted, queue=queue, handler=handler, thread_id=thread_id, limit=limit).result()
        if shared.json:
            for task in found:
                emit(task_json(task))
            return
        now_us = store.now_us()
    rows = [
        [t.id, t.state, t.handler, t.queue, t.attempt, f"{span((now_us - t.created_us) / 1e6)} ago", _note(t)]
        for t in found
    ]
    table(["id", "state", "handler", "queue", "attempt", "submitted", ""], rows, right=frozenset({"id", "attempt"}))


def _note(task: TaskView) -> str:
    if task.error is not None:
        return f"{task.error.kind}: {task.error.message}".splitlines()[0][:80]
    if task.waiting_for:
        return f"waits for {task.waiting_for} tasks"
    return task.reason


@tasks.command()
@task_id
@shared_options()
@pass_shared
def get(shared: Shared, task_id: int) -> None:
    """Show one task: arguments, result, and the attempts that did not succeed."""
    with existing(shared.url) as store:
        task = store.task(task_id).result()
        attempts = store.attempts(task_id).result()
    earlier = [
        {
            "attempt": a.attempt,
            "outcome": a.outcome,
            "worker_id": a.worker_id,
            "started_at": rfc3339(a.started_us),
            "ended_at": rfc3339(a.ended_us),
            "error": None if a.error is None else {"kind": a.error.kind, "message": a.error.message},
        }
        for a in attempts
    ]
    if shared.json:
        emit({**task_json(task), "arguments": raw(task.payload), "result": raw(task.result), "attempts": earlier})
        return
    for name, value in task_json(task).items():
        if value not in (None, "", 0) and name not in {"schema", "error"}:
            click.echo(f"{name:<12} {value}")
    click.echo(f"{'arguments':<12} {task.payload.decode()}")
    if task.result is not None:
        click.echo(f"{'result':<12} {task.result.decode()}")
    for a in attempts:
        why = "" if a.error is None else f" {a.error.kind}: {a.error.message}"
        click.echo(f"attempt {a.attempt:<4} {a.outcome}{why}")
    if task.error is not None:
        click.echo(f"{'error':<12} {task.error.kind}: {task.error.message}")
        if task.error.traceback:
            click.echo(task.error.traceback.rstrip())


# ---------------------------------------------------------------- logs


@tasks.command()
@task_id
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@click.option("--attempt", type=click.IntRange(1), help="Only of this attempt.")
@shared_options()
@pass_shared
def logs(shared: Shared, task_id: int, *, follow: bool, attempt: int | None) -> None:
    """Print what the bodies of a task logged."""
    with existing(shared.url) as store:
        if not follow:
            store.task(task_id).result()  # an unknown task is an error, not an empty log
            _print_logs(shared, store, task_id, attempt, 0)
            return
        with Commits(Path(sqlite_path(store.url))) as commits:
            seq, live = 0, True
            while live:
                # In this order: a line written before the end is there once the end is seen.
                live = store.task(task_id).result().state.live
                seq = _print_logs(shared, store, task_id, attempt, seq)
                if live:
                    commits.wait()


def _print_logs(shared: Shared, store: Store, task_id: int, attempt: int | None, seq: int) -> int:
    """Print the lines after `seq`; return the last one's."""
    while lines := store.logs(task_id, after_seq=seq, limit=LOG_LINES_AT_ONCE).result():
        for line in lines:
            if attempt not in (None, line.attempt):
                continue
            if shared.json:
                emit(log_json(line))
            else:
                click.echo(f"{rfc3339(line.at_us)}  {line.attempt}  {line.level:<8} {line.text}")
        seq = lines[-1].seq
    return seq


# ---------------------------------------------------------------- waiting


@tasks.command()
@task_ids
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), help="Exit 124 after this long.")
@shared_options()
@pass_shared
def wait(shared: Shared, task_ids: tuple[int, ...], *, timeout_s: float | None) -> int:
    """Wait until all have ended: exit 0 if all succeeded, 1 if one failed, else 6 if one was cancelled."""
    until_s = None if timeout_s is None else monotonic_s() + timeout_s
    states: set[State] = set()
    with existing(shared.url) as store:
        ended: SimpleQueue[tuple[int, Ack[Outcome]]] = SimpleQueue()
        for one in task_ids:
            _queue_end(store, one, ended)
        open_ = list(task_ids)
        while open_:
            left_s = None if until_s is None else max(0.0, until_s - monotonic_s())
            try:
                done, ack = ended.get(timeout=left_s)
            except Empty:
                raise ResultTimeout(
                    f"{len(open_)} of {len(task_ids)} tasks have not ended in time: {open_[:10]}",
                    task_id=open_[0],
                    fix="they go on; wait again, or cancel them",
                ) from None
            states.add(ack.result().state)
            open_.remove(done)
            _print_end(shared, store.task(done).result())
    return FAILED if State.FAILED in states else CANCELLED if State.CANCELLED in states else 0


def _queue_end(store: Store, task_id: int, ended: SimpleQueue[tuple[int, Ack[Outcome]]]) -> None:
    store.watch(task_id).add_done_callback(lambda ack: ended.put((task_id, ack)))


def _print_end(shared: Shared, task: TaskView) -> None:
    if shared.json:
        emit({**task_json(task), "result": raw(task.result)})
    else:
        click.echo(f"{task.id} {task.state}{f' ({_note(task)})' if task.error else ''}")


# ---------------------------------------------------------------- changing


@tasks.command()
@task_ids
@click.option("--reason", default="", help="Stored with the task.")
@shared_options()
@pass_shared
def cancel(shared: Shared, task_ids: tuple[int, ...], *, reason: str) -> int:
    """Cancel tasks, running or not; exit 4 if one had ended already."""
    with existing(shared.url) as store:
        return _print_changed(shared, store, task_ids, store.cancel(task_ids, reason=reason).result(), "cancelled")


@tasks.command()
@task_ids
@shared_options()
@pass_shared
def retry(shared: Shared, task_ids: tuple[int, ...]) -> int:
    """Make failed or cancelled tasks ready again, from their finished steps; exit 4 for any other."""
    with existing(shared.url) as store:
        return _print_changed(shared, store, task_ids, store.revive(task_ids).result(), "ready")


def _print_changed(shared: Shared, store: Store, ids: Sequence[int], changed: Sequence[bool], word: str) -> int:
    for one, ok in zip(ids, changed, strict=True):
        state = word if ok else str(store.task(one).result().state)
        if shared.json:
            line: dict[str, Any] = {"schema": "sennit.change/1", "id": one, "changed": ok, "state": state}
            emit(line)
        else:
            click.echo(f"{one} {state}" if ok else f"{one} unchanged: it is {state}")
    return 0 if all(changed) else CONFLICT
