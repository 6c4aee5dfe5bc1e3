"""`sennit threads`: conversations, what they remember, and how that came about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from sennit.cli.forms import ask_line, somebody_is_there
from sennit.cli.group import Group
from sennit.cli.opening import existing, settings_here
from sennit.cli.output import at_most, clipped, emit, pretty, raw, rfc3339, safe, size, span, table, task_json
from sennit.cli.questions import ALL, ask_json, row
from sennit.cli.shared import Shared, checked_thread, examples, pass_shared, shared_options
from sennit.cli.thread_state import (
    NothingThere,
    about_version,
    ago,
    diff_,
    history,
    nothing_of,
    set_,
    state,
    state_json,
    thread_id,
    version_of,
)
from sennit.cli.waits import Waits
from sennit.errors import ThreadNotFound, UsageError
from sennit.model.lifecycle import LIVE, State
from sennit.model.task import TaskView
from sennit.model.thread import CONFIG, STATE, AskView, StateView, ThreadView
from sennit.sync.clock import wall_us
from sennit.threads.chains import Chains
from sennit.threads.documents import encode
from sennit.threads.state import Home
from sennit.threads.thread import Thread
from sennit.threads.workspace import Workspace

TASKS_SHOWN: Final = 20


@click.group(cls=Group, invoke_without_command=True)
@shared_options()
@click.pass_context
def threads(ctx: click.Context) -> None:
    """Conversations: their tasks, state, versions and diffs; alone it means `ls`.

    An ID is any text; put -- before one that begins with a dash.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(ls)


for command in (state, history, diff_, set_):
    threads.add_command(command)


# ---------------------------------------------------------------- looking


@threads.command(epilog=examples("sennit threads ls --json | jq -r 'select(.asks > 0) | .thread_id'"))
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at most.")
@shared_options()
@pass_shared
def ls(shared: Shared, *, limit: int = 100) -> None:
    """List conversations: those with open tasks first, then the last changed first."""
    with existing(shared.url) as store:
        found = at_most(store.threads(limit=limit + 1).result(), limit)
        now_us = store.now_us()
    if shared.json:
        for thread in found:
            emit(_thread_json(thread))
        return
    rows = [
        [
            clipped(safe(t.thread_id), 60),
            t.open_tasks,
            "" if t.holder_id is None else t.holder_id,
            t.asks,
            t.version,
            ago(t.changed_us, now_us),
        ]
        for t in found
    ]
    head = ["thread", "open tasks", "holder", "questions", "version", "changed"]
    table(head, rows, right=frozenset(head[1:5]))


def _thread_json(thread: ThreadView) -> dict[str, Any]:
    """Return the keys of `sennit.thread/1`."""
    return {
        "schema": "sennit.thread/1",
        "thread_id": thread.thread_id,
        "open_tasks": thread.open_tasks,
        "holder_id": thread.holder_id,
        "asks": thread.asks,
        "version": thread.version,
        "changed_at": rfc3339(thread.changed_us or None),
    }


@threads.command(epilog=examples("sennit threads show release-9"))
@thread_id
@shared_options()
@pass_shared
def show(shared: Shared, thread_id: str) -> None:
    """Show one conversation: who has the turn, who waits, its questions and its state."""
    with existing(shared.url) as store:
        state, config = store.state(thread_id).result(), store.state(thread_id, CONFIG).result()
        live = store.tasks(states=sorted(LIVE), thread_id=thread_id, limit=ALL).result()
        ended = store.tasks(states=sorted(set(State) - LIVE), thread_id=thread_id, limit=TASKS_SHOWN).result()
        if not (state.data or config.data or live or ended):
            raise ThreadNotFound(thread_id)
        live.sort(key=lambda task: (task.reason == "thread", task.id))
        waits = Waits(store, live)
        asks = store.asks(thread_id=thread_id, limit=ALL).result() if live else []
        now_us = store.now_us()
    holder = next((task for task in live if task.reason != "thread"), None)
    thread = ThreadView(
        thread_id=thread_id,
        holder_id=None if holder is None else holder.id,
        open_tasks=len(live),
        asks=len(asks),
        version=state.version,
        changed_us=state.at_us,
    )
    if shared.json:
        emit(
            {
                **_thread_json(thread),
                "state": raw(state.data),
                "config": raw(config.data),
                "config_version": config.version,
                "tasks": [task_json(task) for task in (*live, *ended)],
                "questions": [ask_json(ask) for ask in asks],
            }
        )
        return
    click.echo(safe(f"thread     {thread_id}"))
    click.echo(f"open       {_count(len(live), 'task')}, {_count(len(asks), 'question')}")
    _print_tasks(live, ended, waits, now_us)
    _print_asks(asks, now_us)
    for view in (state, config):
        click.echo(f"{view.name:<10} {about_version(view, now_us)}")
        if view.data is not None:
            _print_data(view.data)


def _print_tasks(live: Sequence[TaskView], ended: Sequence[TaskView], waits: Waits, now_us: int) -> None:
    shown = [*live[:TASKS_SHOWN], *ended]
    rows = [
        [task.id, task.state, task.handler, f"{span((now_us - task.created_us) / 1e6)} ago", clipped(_why(task, waits), 60)]
        for task in shown
    ]  # fmt: skip
    if rows:
        table(["task", "state", "handler", "submitted", ""], rows, right=frozenset({"task"}))
    if len(live) > TASKS_SHOWN:
        click.echo(f"{TASKS_SHOWN} of {len(live):,} open ones; all: sennit tasks ls --thread ID", err=True)


def _why(task: TaskView, waits: Waits) -> str:
    return waits.of(task) if task.error is None else f"{task.error.kind}: {task.error.message}"


def _print_asks(asks: Sequence[AskView], now_us: int) -> None:
    if asks:
        rows = [[cell for n, cell in enumerate(row(ask, now_us)) if n != 3] for ask in asks]
        table(["question", "age", "expires", "", "kind"], rows, right=frozenset({"question", "age"}))


def _print_data(data: bytes) -> None:
    click.echo("\n".join(f"  {line}" for line in pretty(data).split("\n")))


@threads.command(epilog=examples("sennit threads context release-9"))
@thread_id
@click.option(
    "--root", type=click.Path(path_type=Path), default=Path(".sennit/workspace"), show_default=True,
    help="Folder of the workspace.",
)  # fmt: skip
@shared_options()
@pass_shared
def context(shared: Shared, thread_id: str, *, root: Path) -> None:
    """List what the tasks of a conversation share as files: values of its workspace, and outputs."""
    workspace = Workspace(root)
    values, outputs = workspace.contexts(thread_id), workspace.outputs(thread_id)
    if not (values or outputs):
        raise NothingThere(f"thread {thread_id!r} has nothing in {root}", fix="name another workspace with --root")
    now_us = wall_us()
    rows: list[list[object]] = []
    for key, value in values.items():
        kind, content = encode(value, key)
        rows.append(["context", safe(key), kind, size(len(content)), "", _shown(kind, content)])
        if shared.json:
            shown: Any = None if kind == "bytes" else value
            about = {"what": "context", "name": key, "kind": kind, "bytes": len(content), "value": shown}
            emit({"schema": "sennit.context/1", "thread_id": thread_id, **about})
    for output in outputs:
        name = f"{output.sequence} {safe(output.name)}"
        rows.append(["output", name, output.kind, size(output.size_bytes), ago(output.at_us, now_us), output.path])
        if shared.json:
            about = {"what": "output", "name": output.name, "kind": output.kind, "bytes": output.size_bytes}
            more = {"sequence": output.sequence, "at": rfc3339(output.at_us), "task_id": output.task_id}
            emit({"schema": "sennit.context/1", "thread_id": thread_id, **about, **more, "path": str(output.path)})
    if not shared.json:
        table(["what", "name", "kind", "size", "added", ""], rows, right=frozenset({"size"}))


def _shown(kind: str, content: bytes) -> str:
    return "" if kind == "bytes" else clipped(content.decode(errors="replace"), 60)


# ---------------------------------------------------------------- changing


@threads.command(epilog=examples("sennit threads fork release-9 release-9-try --version 4"))
@thread_id
@click.argument("new_id", callback=checked_thread, metavar="NEW")
@click.option("--version", type=click.IntRange(1), help="Of the state; default: the present.")
@shared_options()
@pass_shared
def fork(shared: Shared, thread_id: str, new_id: str, *, version: int | None) -> None:
    """Begin the conversation NEW with a copy of the state and config of ID. Exit 4 if NEW has any."""
    with existing(shared.url) as store:
        if version is not None or not store.state(thread_id, CONFIG).result().data:
            version_of(store, thread_id, STATE, version)  # says what is there
        home = Home(store, Chains(store), settings_here().payload_bytes_max)
        thread: Thread[Any] = Thread(lambda: home, thread_id, dict)
        thread.fork(new_id, version).result()
        views = [store.state(new_id, name).result() for name in (STATE, CONFIG)]
    for view in views:
        if view.data and shared.json:
            emit({**state_json(view), "data": raw(view.data)})
    if not shared.json:
        which = "" if version is None else f" at version {version}"
        click.echo(safe(f"{new_id} begins as {thread_id}{which}"))


@threads.command(epilog=examples("sennit threads forget release-9 --yes"))
@thread_id
@click.option("--yes", is_flag=True, help="Do not ask.")
@shared_options()
@pass_shared
def forget(shared: Shared, thread_id: str, *, yes: bool) -> int:
    """Delete state and config of a conversation, all versions. Exit 4 while it has open tasks."""
    with existing(shared.url) as store:
        views = [store.state(thread_id, name).result() for name in (STATE, CONFIG)]
        if not any(view.data for view in views):
            raise nothing_of(store, thread_id, STATE)
        if not (yes or _confirmed(thread_id, views, store.now_us())):
            click.echo("nothing was deleted", err=True)
            return 1
        forgotten = store.forget_thread(thread_id).result()
    if shared.json:
        emit({"schema": "sennit.forgotten/1", "thread_id": thread_id, "forgotten": forgotten})
    else:
        click.echo(safe(f"{thread_id} is forgotten"))
    return 0


def _confirmed(thread_id: str, views: Sequence[StateView], now_us: int) -> bool:
    if not somebody_is_there():
        raise UsageError(
            f"thread {thread_id!r} was not forgotten: nobody can be asked",
            why="stdin or stderr is no terminal, and what is deleted is gone",
            fix="add --yes",
        )
    what = " and ".join(f"its {view.name} ({about_version(view, now_us)})" for view in views if view.data)
    return ask_line(f"delete all versions of {what}? [y/N] ").strip().lower() in {"y", "yes"}


# ---------------------------------------------------------------- words


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"
