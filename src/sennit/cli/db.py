"""`sennit db`: the database itself, whatever keeps it."""

from __future__ import annotations

from pathlib import Path

import click

from sennit.cli.db_copy import backup, copy
from sennit.cli.group import Group
from sennit.cli.opening import pending_of, schema_of, settings_here
from sennit.cli.output import emit
from sennit.cli.shared import Shared, pass_shared, shared_options
from sennit.errors import StoreUnavailable
from sennit.runtime.stores import is_postgres, open_store, sqlite_path
from sennit.store.urls import without_password


@click.group(cls=Group)
@shared_options()
def db() -> None:
    """Make, migrate, check, back up and move the database."""


db.add_command(backup)
db.add_command(copy)


def _place(url: str) -> tuple[str, str]:
    """Return the name of a key, and what it says: a path, or a URL."""
    return ("url", without_password(url)) if is_postgres(url) else ("path", str(sqlite_path(url)))


@db.command()
@shared_options()
@pass_shared
def init(shared: Shared) -> None:
    """Make the database; harmless when it is there. On a server the database itself must be there: createdb."""
    key, place = _place(shared.url)
    made = schema_of(shared.url).found == 0 if is_postgres(shared.url) else not Path(place).is_file()
    _migrate(shared)
    latest = schema_of(shared.url).latest
    if shared.json:
        emit({"schema": "sennit.db/1", key: place, "created": made, "version": latest})
    else:
        click.echo(f"{'created' if made else 'there already:'} {place}, schema {latest}")


def _migrate(shared: Shared) -> None:
    """Opening a store brings its schema to the latest."""
    open_store(shared.url, settings_here()).close()


@db.command()
@click.option("--dry-run", is_flag=True, help="Print the SQL that would run, and change nothing.")
@shared_options()
@pass_shared
def migrate(shared: Shared, *, dry_run: bool) -> None:
    """Bring the schema to the version of this sennit; forward only."""
    before = schema_of(shared.url)
    key, place = _place(shared.url)
    if dry_run:
        todo = pending_of(shared.url)
        for version, name, script in todo:
            if shared.json:
                emit({"schema": "sennit.migration/1", "version": version, "name": name, "sql": script})
            else:
                click.echo(f"-- migration {version}: {name}\n{script.strip()}\n")
        if not todo and not shared.json:
            click.echo(f"-- nothing to do: {place} has schema {before.found}")
        return
    if before.found == 0 and is_postgres(shared.url):
        raise StoreUnavailable(
            f"{place} has no tables of sennit", why="there is nothing to migrate", fix=f"sennit db init --db {place}"
        )
    _migrate(shared)
    if shared.json:
        emit({"schema": "sennit.db/1", key: place, "version_before": before.found, "version": before.latest})
    else:
        now = (
            f"{before.found} → {before.latest}" if before.found != before.latest else f"{before.latest}, nothing to do"
        )
        click.echo(f"{place}: schema {now}")


@db.command()
@shared_options()
@pass_shared
def check(shared: Shared) -> int:
    """Read every page and index, then check what the rows say, as `sennit verify` does; exit 1 if something is broken.

    Of a server: every row is read and every index must be valid; with the extension amcheck they are compared with each other.
    """
    from sennit.cli.db_facts import examine

    return examine(shared)


@db.command()
@shared_options()
@pass_shared
def info(shared: Shared) -> None:
    """Say where the database is, how large, of which schema, and what is in it.

    Of a server also: its version, our connections, who holds the pen, and for how long a snapshot has been open.
    """
    from sennit.cli.db_facts import tell

    tell(shared)
