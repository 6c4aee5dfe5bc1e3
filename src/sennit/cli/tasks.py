"""`sennit tasks`: look at tasks, wait for them, end them, start them again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import click

from sennit.cli.commits import Commits, News
from sennit.cli.group import Group
from sennit.cli.opening import existing
from sennit.cli.output import (
    clipped,
    emit,
    log_json,
    raw,
    rfc3339,
    safe,
    safe_lines,
    say_more,
    span,
    table,
    task_json,
)  # fmt: skip
from sennit.cli.questions import ask_json, open_questions
from sennit.cli.shared import Shared, examples, pass_shared, shared_options, thread_option
from sennit.cli.waits import Waits, waited_json, waited_us, waited_words
from sennit.errors import ResultTimeout
from sennit.model.lifecycle import State
from sennit.model.task import TaskView
from sennit.model.thread import AskView
from sennit.runtime.stores import is_postgres, sqlite_path
from sennit.store.protocol import Store
from sennit.sync.ack import Ack
from sennit.sync.clock import monotonic_s

# Exit codes; the table of docs/reference/cli.md.
FAILED: Final = 1
CONFLICT: Final = 4
ASKED: Final = 5
CANCELLED: Final = 6

LOG_LINES_AT_ONCE: Final = 1000

Heard = SimpleQueue[tuple[int | None, Ack[Any]]]

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


@tasks.command(
    epilog=examples("sennit tasks ls --state failed --json | jq -r .id", "sennit tasks ls --thread release-9")
)
@click.option("--state", "states", multiple=True, type=click.Choice([str(s) for s in State]), help="May be repeated.")
@click.option("--queue", help="Only of this queue.")
@click.option("--handler", help="Only of this handler, by its full name.")
@thread_option
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
    """List tasks, the newest first; one that waits says what for."""
    wanted = [State(s) for s in states]
    with existing(shared.url) as store:
        found = store.tasks(states=wanted, queue=queue, handler=handler, thread_id=thread_id, limit=limit).result()
        if shared.json:
            for task in found:
                emit(task_json(task))
            return
        waits = Waits(store, found)
        now_us = store.now_us()
    rows = [
        [t.id, t.state, t.handler, t.queue, t.attempt, f"{span((now_us - t.created_us) / 1e6)} ago", _note(t, waits)]
        for t in found
    ]
    table(["id", "state", "handler", "queue", "attempt", "submitted", ""], rows, right=frozenset({"id", "attempt"}))
    say_more(found, limit)


def _note(task: TaskView, waits: Waits) -> str:
    """Return why it ended badly, or what it waits for."""
    if task.error is not None:
        return _failure(task)
    found = waits.of(task)
    if not found or task.state not in {State.WAITING, State.SUSPENDED, State.READY}:
        return found
    return f"{'waits for' if task.state is State.SUSPENDED else 'waiting'}: {found}"


def _failure(task: TaskView) -> str:
    return "" if task.error is None else clipped(f"{task.error.kind}: {task.error.message}", 80)


@tasks.command(epilog=examples("sennit tasks get 12"))
@task_id
@shared_options()
@pass_shared
def get(shared: Shared, task_id: int) -> None:
    """Show one task: arguments, result, what it waits for, and the attempts that did not succeed."""
    with existing(shared.url) as store:
        task = store.task(task_id).result()
        attempts = store.attempts(task_id).result()
        position = store.position(task_id).result()
        waits = Waits(store, [task])
        waited = waited_us(store, [task]).get(task_id, {})
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
        asks = [ask.id for ask in waits.asks(task_id)]
        shown = {"position": position, "asks": asks, "arguments": raw(task.payload), "result": raw(task.result)}
        emit({**task_json(task), **shown, "waited_s": waited_json(waited), "attempts": earlier})
        return
    for name, value in task_json(task).items():
        if value not in (None, "", 0, ()) and name not in {"schema", "error", "waiting_for"}:
            _print_fact(name, ", ".join(value) if name == "needs" else value)
    if position is not None:
        _print_fact("position", f"{position} before it")
    if task.state in {State.WAITING, State.SUSPENDED, State.READY} and (what := waits.of(task)):
        _print_fact("waits for", what)
        for ask in waits.asks(task_id):
            _print_fact("answer it", f"sennit inbox show {ask.id}")
    if words := waited_words(waited):
        _print_fact("has waited", words)
    _print_fact("arguments", task.payload.decode())
    if task.result is not None:
        _print_fact("result", task.result.decode())
    for a in attempts:
        why = "" if a.error is None else f" {a.error.kind}: {a.error.message}"
        click.echo(safe_lines(f"attempt {a.attempt:<4} {a.outcome}{why}"))
    if task.error is not None:
        click.echo(safe_lines(f"{'error':<12} {task.error.kind}: {task.error.message}"))
        if task.error.traceback:
            click.echo(safe_lines(task.error.traceback.rstrip()))


def _print_fact(name: str, value: object) -> None:
    click.echo(safe(f"{name:<12} {value}"))


# ---------------------------------------------------------------- logs


@tasks.command(epilog=examples("sennit tasks logs 12 -f"))
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
        with _news_of(store, task_id) as commits:
            seq, live = 0, True
            while live:
                # In this order: a line written before the end is there once the end is seen.
                live = store.task(task_id).result().state.live
                seq = _print_logs(shared, store, task_id, attempt, seq)
                if live:
                    commits.wait()


def _news_of(store: Store, task_id: int) -> AbstractContextManager[News]:
    """Return who wakes when lines were written, or the task has ended."""
    if not is_postgres(store.url):
        return Commits(Path(sqlite_path(store.url)))
    from sennit.store.postgres import PostgresStore

    assert isinstance(store, PostgresStore)  # noqa: S101 - by its URL
    news = store.follow()
    store.watch(task_id).add_done_callback(lambda _: news.wake())
    return news


def _print_logs(shared: Shared, store: Store, task_id: int, attempt: int | None, seq: int) -> int:
    """Print the lines after `seq`; return the last one's."""
    while lines := store.logs(task_id, after_seq=seq, limit=LOG_LINES_AT_ONCE).result():
        for line in lines:
            if attempt not in (None, line.attempt):
                continue
            if shared.json:
                emit(log_json(line))
            else:
                click.echo(safe_lines(f"{rfc3339(line.at_us)}  {line.attempt}  {line.level:<8} {line.text}"))
        seq = lines[-1].seq
    return seq


# ---------------------------------------------------------------- waiting


@tasks.command(epilog=examples("sennit tasks wait 12 13 --timeout-s 60", "sennit tasks wait 12 --or-asked"))
@task_ids
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), help="Exit 124 after this long.")
@click.option("--or-asked", is_flag=True, help="Exit 5 as soon as one of them waits for somebody's answer.")
@shared_options()
@pass_shared
def wait(shared: Shared, task_ids: tuple[int, ...], *, timeout_s: float | None, or_asked: bool) -> int:
    """Wait until all have ended: exit 0 if all succeeded, 1 if one failed, else 6 if one was cancelled."""
    until_s = None if timeout_s is None else monotonic_s() + timeout_s
    states: set[State] = set()
    with existing(shared.url) as store:
        heard: Heard = SimpleQueue()
        for one in task_ids:
            _hear(store.watch(one), one, heard)
        if or_asked:
            _hear(store.watch_inbox(-1), None, heard)  # at once, whatever its revision is
        open_ = list(task_ids)
        while open_:
            left_s = None if until_s is None else max(0.0, until_s - monotonic_s())
            try:
                done, ack = heard.get(timeout=left_s)
            except Empty:
                raise ResultTimeout(
                    f"{len(open_)} of {len(task_ids)} tasks have not ended in time: {open_[:10]}",
                    task_id=open_[0],
                    fix="they go on; wait again, or cancel them",
                ) from None
            if done is None:
                if asks := [ask for ask in open_questions(store) if ask.task_id in open_]:
                    _print_asked(shared, asks)
                    return ASKED
                _hear(store.watch_inbox(ack.result()), None, heard)
                continue
            states.add(ack.result().state)
            open_.remove(done)
            _print_end(shared, store.task(done).result())
    return FAILED if State.FAILED in states else CANCELLED if State.CANCELLED in states else 0


def _hear(ack: Ack[Any], task_id: int | None, heard: Heard) -> None:
    """Put what is acknowledged into the queue; without a task it is the inbox's revision."""
    ack.add_done_callback(lambda done: heard.put((task_id, done)))


def _print_asked(shared: Shared, asks: Sequence[AskView]) -> None:
    for ask in asks:
        if shared.json:
            emit(ask_json(ask))
        else:
            click.echo(safe(f"{ask.task_id} waits for question {ask.id}: {ask.spec.question}"))


def _print_end(shared: Shared, task: TaskView) -> None:
    if shared.json:
        emit({**task_json(task), "result": raw(task.result)})
    else:
        click.echo(safe(f"{task.id} {task.state}{f' ({_failure(task)})' if task.error else ''}"))


# ---------------------------------------------------------------- changing


@tasks.command(epilog=examples("sennit tasks cancel 12 13 --reason 'not wanted'"))
@task_ids
@click.option("--reason", default="", help="Stored with the task.")
@shared_options()
@pass_shared
def cancel(shared: Shared, task_ids: tuple[int, ...], *, reason: str) -> int:
    """Cancel tasks, running or not; exit 4 if one had ended already."""
    with existing(shared.url) as store:
        return _print_changed(shared, store, task_ids, store.cancel(task_ids, reason=reason).result(), "cancelled")


@tasks.command(epilog=examples("sennit tasks ls --state failed --json | jq .id | xargs sennit tasks retry"))
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
