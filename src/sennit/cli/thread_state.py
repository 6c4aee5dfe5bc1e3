"""`sennit threads state|history|diff|set`: what a conversation remembers, version by version."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import click
import msgspec

from sennit.cli.forms import text_of
from sennit.cli.jsondiff import Op, diff, summary
from sennit.cli.opening import existing, settings_here
from sennit.cli.output import at_most, clipped, emit, pretty, raw, rfc3339, safe, size, span, table
from sennit.cli.questions import ALL
from sennit.cli.shared import Shared, checked_thread, examples, pass_shared, shared_options
from sennit.errors import ThreadNotFound, UsageError
from sennit.limit.admission import check_thread_bytes
from sennit.model.thread import CONFIG, STATE, StateView, StateWrite
from sennit.store.protocol import Store
from sennit.sync.plain import typed

thread_id = click.argument("thread_id", callback=checked_thread, metavar="ID")
of_config = click.option("--config", is_flag=True, help="The thread's config instead of its state.")


class NothingThere(UsageError, LookupError):
    """A thread has no such thing, or not this version of it."""

    exit_code = 3


# ---------------------------------------------------------------- looking


@click.command(
    epilog=examples("sennit threads state release-9 | jq .reviews", "sennit threads state release-9 --version 4")
)
@thread_id
@click.option("--version", type=click.IntRange(1), help="An older one; default: the present.")
@of_config
@shared_options()
@pass_shared
def state(shared: Shared, thread_id: str, *, version: int | None, config: bool) -> None:
    """Print what a conversation remembers, as JSON."""
    with existing(shared.url) as store:
        view = version_of(store, thread_id, CONFIG if config else STATE, version)
    if shared.json:
        emit({**state_json(view), "data": raw(view.data)})
    else:
        click.echo(pretty(view.data or b"null"))


def state_json(view: StateView) -> dict[str, Any]:
    """Return the keys of `sennit.state/1` but `data`."""
    return {
        "schema": "sennit.state/1",
        "thread_id": view.thread_id,
        "name": view.name,
        "version": view.version,
        "at": rfc3339(view.at_us or None),
        "task_id": view.task_id,
        "operation_id": view.operation_id,
    }


def version_of(store: Store, thread_id: str, name: str, version: int | None) -> StateView:
    """Return a version that has data.

    Raises:
        NothingThere, ThreadNotFound: there is none.
    """
    view = store.state(thread_id, name, version=version).result()
    if view.data is None:
        kept = [v.version for v in store.state_history(thread_id, name, limit=ALL).result()]
        if not kept:
            raise nothing_of(store, thread_id, name)
        raise NothingThere(
            f"version {version} of the {name} of thread {thread_id!r} is not there",
            why=f"versions {kept[-1]} to {kept[0]} are kept; settings.state_versions says how many",
            fix="see `sennit threads history`",
        )
    return view


def nothing_of(store: Store, thread_id: str, name: str) -> NothingThere | ThreadNotFound:
    """Return the error of a thread without a state or config: it has tasks, or the other one, or nobody knows it."""
    is_written = any(store.state(thread_id, chain).result().version for chain in (STATE, CONFIG))
    if is_written or store.tasks(thread_id=thread_id, limit=1).result():
        return NothingThere(
            f"thread {thread_id!r} has no {name}", fix=f"see `sennit threads show {shlex.quote(thread_id)}`"
        )
    return ThreadNotFound(thread_id)


@click.command(epilog=examples("sennit threads history release-9"))
@thread_id
@of_config
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at most.")
@shared_options()
@pass_shared
def history(shared: Shared, thread_id: str, *, config: bool, limit: int) -> None:
    """List the versions that are kept, newest first, with what each has changed (+ added, - removed, ~ replaced)."""
    name = CONFIG if config else STATE
    with existing(shared.url) as store:
        views = at_most(store.state_history(thread_id, name, limit=limit + 1).result(), limit)
        if not views:
            raise nothing_of(store, thread_id, name)
        now_us = store.now_us()
    if shared.json:
        for view in views:
            emit({**state_json(view), "bytes": len(view.data or b"")})
        return
    values = [msgspec.json.decode(view.data or b"null") for view in views]
    changes = [summary(list(diff(old, new))) for new, old in pairwise(values)]
    rows = [
        [
            view.version,
            ago(view.at_us, now_us),
            "outside" if view.task_id is None else f"task {view.task_id}",
            size(len(view.data or b"")),
            changed,
            clipped(safe(view.operation_id or ""), 40),
        ]
        for view, changed in zip(views, [*changes, ""], strict=True)
    ]
    head = ["version", "written", "by", "size", "changes", "operation"]
    table(head, rows, right=frozenset({"version", "size"}))


@click.command("diff", epilog=examples("sennit threads diff release-9 4", "sennit threads diff release-9 4 6 --json"))
@thread_id
@click.argument("before", type=click.IntRange(0), metavar="V1")
@click.argument("after", type=click.IntRange(1), required=False, metavar="[V2]")
@of_config
@shared_options()
@pass_shared
def diff_(shared: Shared, thread_id: str, before: int, after: int | None, *, config: bool) -> None:
    """Show what has changed from version V1 to V2, or to the present one; 0 is "nothing yet".

    With --json it is one object whose `changes` are operations of RFC 6902, each with the `old` value.
    """
    name = CONFIG if config else STATE
    with existing(shared.url) as store:
        new = version_of(store, thread_id, name, after)
        old = version_of(store, thread_id, name, before) if before else StateView(thread_id=thread_id, name=name)
    ops = list(diff(msgspec.json.decode(old.data or b"null"), msgspec.json.decode(new.data or b"null")))
    if shared.json:
        about = {"schema": "sennit.diff/1", "thread_id": thread_id, "name": name}
        emit({**about, "from": old.version, "to": new.version, "changes": [op.as_json() for op in ops]})
        return
    click.echo(f"version {old.version} → {new.version}   {summary(ops) or 'no difference'}")
    _print_ops(ops)


def _print_ops(ops: Sequence[Op]) -> None:
    for op in ops:
        click.echo(safe(op.line(100)))


# ---------------------------------------------------------------- changing


@click.command("set", epilog=examples("sennit threads set release-9 '{\"reviews\": 0}' --expected 4"))
@thread_id
@click.argument("value", metavar="JSON")
@click.option("--expected", type=click.IntRange(0), help="Only if it is at this version; default: as it is now.")
@of_config
@shared_options()
@pass_shared
def set_(shared: Shared, thread_id: str, value: str, *, expected: int | None, config: bool) -> None:
    """Write a new version of what a conversation remembers; - reads it from stdin. Exit 4 if it is not at --expected.

    A running task that has changed the state, and has not ended, applies its change to the new version.
    """
    name = CONFIG if config else STATE
    try:
        plain = msgspec.json.decode(text_of(value))
    except msgspec.DecodeError as error:
        raise UsageError(f"the value is not JSON: {error}", fix="quote text too: '\"done\"'") from None
    settings = settings_here()
    data = typed(object).encode(plain, f"the {name} of thread {thread_id!r}", settings.payload_bytes_max)
    with existing(shared.url) as store:
        present = store.state(thread_id, name).result()
        other = store.state(thread_id, STATE if config else CONFIG).result()
        check_thread_bytes(thread_id, len(data) + len(other.data or b""), settings.thread_memory_bytes_max)
        made_from = present.version if expected is None else expected
        write = StateWrite(thread_id=thread_id, name=name, expected=made_from, data=data)
        (view,) = store.write_states([write]).result()
    if shared.json:
        emit({**state_json(view), "data": raw(view.data)})
    else:
        click.echo(safe(f"{name} of {thread_id} is at version {view.version}"))


# ---------------------------------------------------------------- words


def about_version(view: StateView, now_us: int) -> str:
    """Return how a version came about, for people."""
    if view.data is None:
        return f"forgotten at version {view.version}" if view.version else "nothing yet"
    who = "" if view.task_id is None else f" by task {view.task_id}"
    return f"version {view.version}, {size(len(view.data or b''))}, {ago(view.at_us, now_us)}{who}"


def ago(at_us: int, now_us: int) -> str:
    """Return how long ago a moment is; "" for 0."""
    return f"{span((now_us - at_us) / 1e6)} ago" if at_us else ""
