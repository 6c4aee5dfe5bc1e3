"""`sennit locks`: who holds which file lock."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from sennit.cli.group import Group
from sennit.cli.output import emit, rfc3339, safe, span, table
from sennit.cli.shared import Shared, examples, pass_shared, shared_options
from sennit.sync.clock import wall_us
from sennit.sync.filelocks import FileLock, LockOwner

DEFAULT: Final = Path(".sennit")
GATE: Final = ".gate"
PEN: Final = "-pen"  # the writer's own lock: not of this kind, and nobody signs it


@click.group(cls=Group)
@shared_options()
def locks() -> None:
    """File locks: `sennit.sync.filelocks.FileLock`, and those of the workspace."""


@locks.command(epilog=examples("sennit locks ls", "sennit locks ls report.lock /var/lock/fleet --all"))
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path), metavar="[PATH]...")
@click.option("--all", "free", is_flag=True, help="Also those that nobody holds.")
@shared_options()
@pass_shared
def ls(shared: Shared, paths: Sequence[Path], *, free: bool) -> None:
    """List locks and who holds them: of these files, and of those in and below these folders (default: .sennit).

    Each is taken for a moment to learn whether it is free.
    """
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
    elif not shared.json:
        looked = f"{len(found):,} lock{'' if len(found) == 1 else 's'} in {', '.join(map(str, roots))}"
        click.echo(safe(f"none is held: {looked}"))


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
