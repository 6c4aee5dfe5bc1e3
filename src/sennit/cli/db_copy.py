"""`sennit db copy` and `sennit db backup`: a store into another one, whatever keeps either."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sennit.cli.opening import existing_path, schema_of, settings_here
from sennit.cli.output import emit, ledger_json, ledger_line, size
from sennit.cli.shared import Shared, examples, pass_shared, shared_options
from sennit.errors import StoreUnavailable
from sennit.runtime.stores import is_postgres, sqlite_path
from sennit.store.urls import without_password

if TYPE_CHECKING:
    from sennit.store.copying import Copied

_STEPS: Final = {"reading", "settling", "committing the target", "shutting the source"}
_TOLD_EVERY: Final = 100_000  # rows; smaller tables take no time


@click.command(
    epilog=examples(
        "sennit db copy sqlite:///fleet.db postgresql://sennit@db.internal/sennit",
        "sennit db copy postgresql://sennit@db.internal/sennit sqlite:///fleet.db",
    )
)
@click.argument("source")
@click.argument("target")
@click.option("--keep", is_flag=True, help="Leave SOURCE open: a fork. Whoever works on both does what is live twice.")
@shared_options()
@pass_shared
def copy(shared: Shared, source: str, target: str, *, keep: bool) -> None:
    """Move all that is in SOURCE into the empty store TARGET, live tasks included; both are URLs.

    SOURCE must have no living processes, and is shut afterwards: whoever opens it is told where its tasks are now. Every
    table is compared by count and digest before anything is made final. Interrupted, it is run again.
    """
    from sennit.runtime.moving import move_store

    if not is_postgres(source):
        existing_path(source)
    done = move_store(source, target, settings_here(), keep=keep, say=_progress(shared))
    _carry_arrays(source, target)
    n_rows = sum(done.rows.values())
    if shared.json:
        emit(
            {
                "schema": "sennit.copy/1",
                "source": without_password(source),
                "target": without_password(target),
                "keep": keep,
                "resumed": done.resumed,
                "rows": done.rows,
                "digests": done.digests,
                "given_back": done.given_back,
                "replaced": done.replaced,
                "ledger": ledger_json(done.ledger),
            }
        )
        return
    click.echo(f"ledger   {ledger_line(done.ledger)}")
    if done.resumed:
        click.echo("the rows were there already, and equal; the target is open now")
    else:
        click.echo(f"{n_rows:,} rows of {len(done.rows)} tables, the same on both sides")
    _say_changed(done)
    shown = without_password(target)
    click.echo(f"copied to {shown}; the source goes on as it is" if keep else f"moved to {shown}: use it from now on")


def _progress(shared: Shared) -> _Progress:
    return _Progress(is_quiet=shared.verbosity < 0)


class _Progress:
    """Tells on stderr what is being done."""

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet

    def __call__(self, step: str, n: int) -> None:
        if not self._is_quiet and (step in _STEPS or (n and n % _TOLD_EVERY == 0)):
            click.echo(f"{step:<24} {n:,} rows" if n else step, err=True)


def _say_changed(done: Copied) -> None:
    if done.given_back:
        click.echo(f"{done.given_back:,} attempts were running when their process ended: ready again, nothing used up")
    if done.replaced:
        click.echo(f"{done.replaced:,} rows had the character NUL in a text, which PostgreSQL cannot keep: now ␀")


def _carry_arrays(source: str, target: str) -> None:
    """Take large arrays along, which lie in files beside the database."""
    from sennit.cli.db_facts import folder_beside

    folder = None if is_postgres(source) else folder_beside(sqlite_path(source))
    if folder is None:
        return
    if is_postgres(target):
        click.echo(f"large arrays stay in {folder}: put it where all machines find it, and set array_folder", err=True)
    else:
        path = sqlite_path(target)
        shutil.copytree(folder, path.with_name(path.name + ".arrays"), dirs_exist_ok=True)


@click.command(epilog=examples("sennit db backup backup.db", "sennit db backup backup.db --db postgresql://…"))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@shared_options()
@pass_shared
def backup(shared: Shared, file: Path) -> None:
    """Copy the database to a new SQLite FILE while workers go on; the copy is of one moment, and a store to open.

    Of a server: `sennit db copy --keep`, checked in the same way. Back with `sennit db copy FILE-URL URL`.
    """
    if is_postgres(shared.url):
        _backup_server(shared, file)
        return
    from sennit.store.backup import backup as copy_database

    path = existing_path(shared.url)
    if schema_of(shared.url).found == 0:
        raise StoreUnavailable(f"{path} has no tables of sennit", why="it is empty or belongs to another program")
    pages = copy_database(path, file)
    n_bytes = file.stat().st_size
    if shared.json:
        emit({"schema": "sennit.backup/1", "path": str(path), "target": str(file), "pages": pages, "bytes": n_bytes})
    else:
        click.echo(f"{path} → {file}: {pages:,} pages, {size(n_bytes)}")


def _backup_server(shared: Shared, file: Path) -> None:
    from sennit.runtime.moving import back_up_server

    done = back_up_server(shared.url, file, settings_here(), say=_progress(shared))
    n_bytes, n_rows, shown = file.stat().st_size, sum(done.rows.values()), without_password(shared.url)
    if shared.json:
        emit({"schema": "sennit.backup/1", "url": shown, "target": str(file), "rows": n_rows, "bytes": n_bytes})
    else:
        click.echo(f"{shown} → {file}: {n_rows:,} rows, {size(n_bytes)}")
