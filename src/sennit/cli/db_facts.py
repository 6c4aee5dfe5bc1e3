"""`sennit db info` and `sennit db check`: what is said of a file, and of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sennit.cli.opening import existing_path, reading, schema_of
from sennit.cli.output import emit, rfc3339, safe, size, span, table
from sennit.cli.shared import Shared
from sennit.errors import StoreCorrupt
from sennit.runtime.stores import is_postgres
from sennit.store.database import Connection
from sennit.store.facts import file_facts, oldest_ready_us, rows_of
from sennit.store.moved import closing_of
from sennit.store.moves import look
from sennit.store.urls import without_password


def tell(shared: Shared) -> None:
    """Say what a database is, and what is in it."""
    url = shared.url
    schema = schema_of(url)
    path = None if is_postgres(url) else existing_path(url)
    with reading(url) as reader:
        facts = reader.put(
            lambda c: _server(c) if path is None else {"path": str(path.absolute()), **file_facts(c, path)}
        )
        found = facts.result()
        if schema.found == schema.latest:
            found |= reader.put(lambda c: _tasks(c, is_server=path is None)).result()
    found = {
        "kind": "postgresql" if path is None else "sqlite",
        "url": without_password(url),
        "version": schema.found,
        "version_latest": schema.latest,
        **found,
    }
    if shared.json:
        emit({"schema": "sennit.db/1", **found})
    else:
        _print(found)


def _server(connection: Connection) -> dict[str, Any]:
    from sennit.store.postgres_facts import oldest_snapshot_s, pen_of, server_facts, sessions_of

    found = server_facts(connection)
    has_tables = connection.execute("SELECT to_regclass('sennit_task') IS NOT NULL").fetchone()[0]
    return {
        **found,
        "connections": sessions_of(connection),
        "pen": pen_of(connection) if has_tables else [],
        "oldest_snapshot_s": oldest_snapshot_s(connection),
    }


def _tasks(connection: Connection, *, is_server: bool) -> dict[str, Any]:
    if is_server:
        from sennit.store.postgres_facts import rows_of as rows
    else:
        rows = rows_of
    ledger = look.ledger(connection)
    closing = closing_of(connection)
    return {
        "closed": None
        if closing is None
        else {"why": closing.why, "other": closing.other, "at": rfc3339(closing.at_us)},
        "tasks_stored": ledger.submitted - ledger.pruned,
        "tasks_live": ledger.live,
        "oldest_ready_at": rfc3339(oldest_ready_us(connection)),
        "rows": rows(connection),
    }


def _print(found: dict[str, Any]) -> None:
    for name, value in found.items():
        if name in {"rows", "pen", "connections", "closed"}:
            continue
        text = size(value) if name.endswith("bytes") and isinstance(value, int) else value
        click.echo(safe(f"{name:<18} {'none' if value is None else text}"))
    if closed := found.get("closed"):
        click.echo(safe(f"{'closed':<18} {closed['why']}: {closed['other']}, since {closed['at']}"))
    if "connections" in found:
        ours = ", ".join(f"{n} {state}" for state, n in found["connections"].items()) or "none"
        click.echo(f"{'connections':<18} {ours}")
        for one in found["pen"]:
            how = "holds the pen" if one["holds"] else "waits for the pen"
            words = f"backend {one['pid']} ({one['host']}) {how}, {one['how']}, for {span(one['since_s'])}"
            click.echo(safe(f"{'pen':<18} {words}"))
    if filled := [(name, f"{n:,}") for name, n in found.get("rows", {}).items() if n]:
        click.echo()
        table(["table", "rows"], filled, right=frozenset({"rows"}))


def examine(shared: Shared) -> int:
    """Check a database itself, and what its rows say; return the exit code."""
    url = shared.url
    name = schema_of(url).name if is_postgres(url) else str(existing_path(url))
    broken, skipped = _broken(url)
    if shared.json:
        emit({"schema": "sennit.check/1", "path": name, "sound": not broken, "broken": broken, "skipped": skipped})
    else:
        click.echo("\n".join([f"✕ {safe(line)}" for line in broken] or [f"✓ {name} is sound"]))
        for line in skipped:
            click.echo(f"· not checked: {line}")
    return 1 if broken else 0


def _broken(url: str) -> tuple[list[str], list[str]]:
    """Return what is broken, and what was not looked at."""
    try:
        with reading(url) as reader:
            if is_postgres(url):
                from sennit.store.postgres_facts import unsound

                broken, skipped = reader.put(unsound).result()
            else:
                broken, skipped = reader.put(_file_unsound).result(), []
            if broken:
                return broken, skipped  # what cannot be read soundly proves nothing
            schema = schema_of(url)
            if schema.found != schema.latest:
                skipped.append(f"what the rows say: the schema is {schema.found}, this sennit knows {schema.latest}")
                return broken, skipped
            return reader.put(look.verify).result(), skipped
    except StoreCorrupt as error:
        return [error.what], []


def _file_unsound(connection: Connection) -> list[str]:
    answers = connection.execute("PRAGMA integrity_check").fetchall()
    return [row[0] for row in answers if row[0] != "ok"]


def folder_beside(path: Path) -> Path | None:
    """Return where arrays of the tasks in a file are kept, if there are some."""
    folder = path.with_name(path.name + ".arrays")
    return folder if folder.is_dir() and any(folder.iterdir()) else None
