"""`sennit db`: the database as a file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from sennit.cli.group import Group
from sennit.cli.opening import existing, existing_path, reading, schema_of, settings_here
from sennit.cli.output import emit, size
from sennit.cli.shared import Shared, pass_shared, shared_options
from sennit.errors import StoreCorrupt, StoreUnavailable
from sennit.runtime.stores import open_store, sqlite_path
from sennit.store.backup import backup as copy_database
from sennit.store.connect import filesystem_of
from sennit.store.migrate import LATEST, pending

PRAGMAS: Final = ("page_size", "page_count", "freelist_count", "journal_mode")


@click.group(cls=Group)
@shared_options()
def db() -> None:
    """Make, migrate, check and back up the database."""


@db.command()
@shared_options()
@pass_shared
def init(shared: Shared) -> None:
    """Make the database; harmless when it is there."""
    path = sqlite_path(shared.url)
    made = not path.is_file()
    _migrate(shared)
    if shared.json:
        emit({"schema": "sennit.db/1", "path": str(path), "created": made, "version": LATEST})
    else:
        click.echo(f"{'created' if made else 'there already:'} {path}, schema {LATEST}")


def _migrate(shared: Shared) -> None:
    """Opening a store brings its schema to the latest."""
    open_store(shared.url, settings_here()).close()


@db.command()
@click.option("--dry-run", is_flag=True, help="Print the SQL that would run, and change nothing.")
@shared_options()
@pass_shared
def migrate(shared: Shared, *, dry_run: bool) -> None:
    """Bring the schema to the version of this sennit; forward only."""
    path = existing_path(shared.url)
    before = schema_of(path)
    if dry_run:
        with reading(path) as reader:
            todo = reader.put(pending).result()
        for version, name, script in todo:
            if shared.json:
                emit({"schema": "sennit.migration/1", "version": version, "name": name, "sql": script})
            else:
                click.echo(f"-- migration {version}: {name}\n{script.strip()}\n")
        if not todo and not shared.json:
            click.echo(f"-- nothing to do: {path} has schema {before}")
        return
    _migrate(shared)
    if shared.json:
        emit({"schema": "sennit.db/1", "path": str(path), "version_before": before, "version": LATEST})
    else:
        click.echo(
            f"{path}: schema {before} → {LATEST}" if before != LATEST else f"{path}: schema {LATEST}, nothing to do"
        )


@db.command()
@shared_options()
@pass_shared
def check(shared: Shared) -> int:
    """Check the file itself, every page and index; exit 1 if it is damaged. `sennit verify` checks what it says."""
    path = existing_path(shared.url)
    try:
        with reading(path) as reader:
            answers = reader.put(lambda c: c.execute("PRAGMA integrity_check").fetchall()).result()
        broken = [row[0] for row in answers if row[0] != "ok"]
    except StoreCorrupt as error:
        broken = [error.what]
    if shared.json:
        emit({"schema": "sennit.check/1", "path": str(path), "sound": not broken, "broken": broken})
    else:
        click.echo("\n".join([f"✕ {line}" for line in broken] or [f"✓ {path} is sound"]))
    return 1 if broken else 0


@db.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@shared_options()
@pass_shared
def backup(shared: Shared, file: Path) -> None:
    """Copy the database to a new FILE while workers go on; the copy is of one moment."""
    path = existing_path(shared.url)
    if schema_of(path) == 0:
        raise StoreUnavailable(f"{path} has no tables of sennit", why="it is empty or belongs to another program")
    pages = copy_database(path, file)
    n_bytes = file.stat().st_size
    if shared.json:
        emit({"schema": "sennit.backup/1", "path": str(path), "target": str(file), "pages": pages, "bytes": n_bytes})
    else:
        click.echo(f"{path} → {file}: {pages:,} pages, {size(n_bytes)}")


@db.command()
@shared_options()
@pass_shared
def info(shared: Shared) -> None:
    """Say where the database is, how large, and of which schema."""
    path = existing_path(shared.url)
    version = schema_of(path)
    with reading(path) as reader:
        pragmas = reader.put(lambda c: {name: c.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS}).result()
    tasks = None
    if version == LATEST:
        with existing(shared.url) as store:
            tasks = store.ledger().result()
    facts = {
        "path": str(path.absolute()),
        "bytes": path.stat().st_size,
        "log_bytes": _size_of(path.with_name(path.name + "-wal")),
        "version": version,
        "version_latest": LATEST,
        "tasks_stored": None if tasks is None else tasks.submitted - tasks.pruned,
        "filesystem": filesystem_of(path),
        **pragmas,
    }
    if shared.json:
        emit({"schema": "sennit.db/1", **facts})
        return
    for name, value in facts.items():
        text = size(value) if name.endswith("bytes") and isinstance(value, int) else value
        click.echo(f"{name:<16} {text}")


def _size_of(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
