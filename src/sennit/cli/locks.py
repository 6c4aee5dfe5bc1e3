"""`sennit locks`: who holds which lock, of the store and of files; and how an operator takes one away."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from sennit.cli.group import Group
from sennit.cli.opening import existing
from sennit.cli.output import emit, rfc3339, safe, span, table
from sennit.cli.shared import Shared, examples, pass_shared, shared_options
from sennit.errors import StoreUnavailable, UsageError
from sennit.model.lock import LockHolder, LockView
from sennit.sync.clock import wall_us
from sennit.sync.filelocks import FileLock, LockOwner

DEFAULT: Final = Path(".sennit")
GATE: Final = ".gate"
PEN: Final = "-pen"  # the writer's own lock: not of this kind, and nobody signs it


@click.group(cls=Group)
@shared_options()
def locks() -> None:
    """Locks of the store (`app.lock`), and of files (`FileLock`, and those of the workspace)."""


@locks.command(epilog=examples("sennit locks ls", "sennit locks ls report.lock /var/lock/fleet --all"))
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path), metavar="[PATH]...")
@click.option("--all", "free", is_flag=True, help="Also those that nobody holds.")
@shared_options()
@pass_shared
def ls(shared: Shared, paths: Sequence[Path], *, free: bool) -> None:
    """List locks, who holds them and who waits: those of the store, and of files in and below .sennit.

    With PATH only file locks: of these files, and of those in and below these folders. Each of them is taken for a moment to
    learn whether it is free. Locks in Redis are not listed.
    """
    views = [] if paths else _of_store(shared)
    if views:
        _show(shared, views)
    roots = list(paths) or [DEFAULT]
    found = [(path, *_owners(path)) for path in sorted({lock for root in roots for lock in _locks(root)})]
    now_us = wall_us()
    rows = []
    for path, owners, trouble in found:
        for owner in owners or ((None,) if free or trouble else ()):
            if shared.json:
                emit(_json(path, owner, trouble))
            elif owner is None:
                rows.append([path, "", "", trouble or "free", ""])
            else:
                held = span((now_us - owner.since_us) / 1e6)
                how = "shared" if owner.shared else "exclusive"
                rows.append([path, f"{owner.pid} on {owner.host}", held, how, owner.purpose])
    if rows:
        table(["lock", "holder", "held for", "how", "purpose"], rows)
    elif not shared.json and not views:
        looked = f"{len(found):,} lock{'' if len(found) == 1 else 's'} in {', '.join(map(str, roots))}"
        click.echo(safe(f"none is held: {looked}"))


@locks.command(epilog=examples("sennit locks release deploy --force"))
@click.argument("name")
@click.option(
    "--force", is_flag=True, help="Take it from whoever holds it; what they write under its fence is refused."
)
@shared_options()
@pass_shared
def release(shared: Shared, name: str, *, force: bool) -> None:
    """Take a lock of the store away from all who hold it. The next in line has it at once.

    Its token grows, also when nobody waits. The holders hear of it when they next extend or release it; end them first if
    what they do outside of the store must not go on.
    """
    if not force:
        raise UsageError(
            f"the lock {name!r} is released by who holds it",
            why="taking it away lets a second one in while the first may still be at work",
            fix=f"sennit locks release {name} --force",
        )
    with existing(shared.url) as store:
        n = store.seize_lock(name).result()
        if not n and not store.locks([name]).result():
            raise UsageError(
                f"no lock {name!r} was ever held in this store", fix="see `sennit locks ls`, and check --db"
            )
    if shared.json:
        emit({"schema": "sennit.lock_release/1", "name": name, "holders": n})
    else:
        click.echo(safe(f"{name}: taken from {n:,} holder{'' if n == 1 else 's'}"))


def _of_store(shared: Shared) -> list[LockView]:
    """Return the locks of the store; none when there is no store and none was named."""
    try:
        with existing(shared.url) as store:
            return store.locks().result()
    except StoreUnavailable:
        if shared.db is not None:
            raise
        return []


def _show(shared: Shared, views: Sequence[LockView]) -> None:
    """Print the locks of a store."""
    rows = []
    now_us = wall_us()
    for view in views:
        if shared.json:
            emit(
                {
                    "schema": "sennit.store_lock/1",
                    "name": view.name,
                    "token": view.token,
                    "holders": [_holder(holder) for holder in view.holders],
                    "waiting": [_holder(holder) for holder in view.waiting],
                }
            )
        for holder in (*view.holders, *view.waiting):
            how = "shared" if holder.shared else "alone"
            if holder.n_max:
                how = f"1 of {holder.n_max}"
            if holder.token is None:
                how = f"waits ({how})"
            since = span(max(0.0, (now_us - holder.since_us) / 1e6))
            rows.append([view.name, holder.owner, since, how, "" if holder.token is None else str(holder.token)])
    if not shared.json:
        table(["lock of the store", "who", "for", "how", "token"], rows)


def _holder(holder: LockHolder) -> dict[str, object]:
    return {
        "owner": holder.owner,
        "token": holder.token,
        "shared": holder.shared,
        "n_max": holder.n_max,
        "since_at": rfc3339(holder.since_us),
        "until_at": None if holder.until_us is None else rfc3339(holder.until_us),
    }


def _owners(path: Path) -> tuple[tuple[LockOwner, ...], str]:
    """Return who holds a lock, and why that cannot be seen."""
    try:
        return FileLock(path).owners(), ""
    except OSError as error:  # of another user, or a symlink
        return (), error.strerror or str(error)


def _locks(root: Path) -> Iterator[Path]:
    """Yield the locks of a path: a lock file has a gate beside it."""
    if root.is_file():
        yield root
    for folder, _, names in os.walk(root):
        there = set(names)
        for name in names:
            lock = name.removesuffix(GATE)
            if lock != name and lock in there and not lock.endswith(PEN):
                yield Path(folder) / lock


def _json(path: Path, owner: LockOwner | None, trouble: str) -> dict[str, object]:
    """Return the keys of `sennit.lock/1`; a free one has no `pid`, and one that cannot be looked at has an `error`."""
    return {
        "schema": "sennit.lock/1",
        "path": str(path),
        "held": None if trouble else owner is not None,
        "error": trouble,
        "pid": None if owner is None else owner.pid,
        "host": None if owner is None else owner.host,
        "since_at": None if owner is None else rfc3339(owner.since_us),
        "shared": None if owner is None else owner.shared,
        "purpose": None if owner is None else owner.purpose,
    }
