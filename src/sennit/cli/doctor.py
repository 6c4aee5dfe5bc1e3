"""`sennit doctor`: does this machine have what sennit stands on?

A check is a value: `problem` stops sennit from working as promised, `notice` makes it slower or weaker.
"""

from __future__ import annotations

import fcntl
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import click

from sennit.cli.opening import reading, schema_of, settings_here
from sennit.cli.output import emit, size
from sennit.cli.shared import Shared, examples, pass_shared, shared_options
from sennit.errors import SennitError
from sennit.runtime.engine import usable_cores
from sennit.runtime.stores import is_postgres, sqlite_path
from sennit.store.connect import NETWORK_FILESYSTEMS, connect, filesystem_of
from sennit.store.liveness import PIDFD
from sennit.store.moved import closing_of
from sennit.store.wakeup import Bell
from sennit.sync.filelock import Pen

PYTHON_MIN: Final = (3, 11)
# RETURNING came with 3.35, and the statements of store/sql use it throughout.
SQLITE_MIN: Final = (3, 35)
DISK_BYTES_MIN: Final = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `fix` says what to do unless it is ok."""

    name: str
    level: Literal["ok", "notice", "problem"]
    found: str
    fix: str = ""


@click.command(epilog=examples("sennit doctor", "sennit doctor --workload job.py:score"))
@click.option(
    "--workload",
    metavar="MODULE:FUNCTION",
    help="Instead: call this function, many times, in 1 to 32 OS threads and in processes, and say where it runs best.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.05, 60),
    default=0.5,
    show_default=True,
    help="With --workload: for each place, twice.",
)
@shared_options()
@pass_shared
def doctor(shared: Shared, *, workload: str | None, seconds: float) -> int:
    """Check Python, the settings, and what the database stands on; exit 1 on any problem.

    For a file: SQLite, file system, locks, sockets. For a server: version, durability, room for connections, notifications.
    """
    if workload is not None:
        from sennit.cli.doctor_workload import examine_workload

        examine_workload(workload, seconds=seconds, is_json=shared.json)
        return 0
    checks = list(examine(shared.url))
    for check in checks:
        if shared.json:
            emit({"schema": "sennit.doctor/1", **asdict(check)})
        else:
            _print(shared, check)
    return 1 if any(check.level == "problem" for check in checks) else 0


def _print(shared: Shared, check: Check) -> None:
    mark, colour = {"ok": ("✓", "green"), "notice": ("·", "yellow"), "problem": ("✕", "red")}[check.level]
    click.echo(f"{click.style(mark, fg=colour)} {check.name:<18} {check.found}", color=shared.color)
    if check.fix:
        click.echo(f"  {'fix':<18} {check.fix}")


def examine(url: str) -> Iterator[Check]:
    """Yield the finding of every check."""
    yield _python()
    yield _sqlite()
    yield Check("cores", "ok", f"{usable_cores()} usable of {os.cpu_count()}")
    yield _pidfd()
    settings = _tried("settings", "every file and variable is read", settings_here)
    yield settings
    if settings.level == "ok":
        from sennit.cli.doctor_pools import pool_checks

        yield from pool_checks(settings_here())
    if is_postgres(url):
        from sennit.cli.doctor_server import server_checks

        yield from server_checks(url)
        return
    try:
        path = sqlite_path(url)
    except SennitError as error:
        yield Check("database", "problem", error.what, error.fix)
        return
    if path.is_file():
        yield from shut(url)
    folder = _nearest_folder(path)
    yield _writable(folder)
    yield _filesystem(path)
    yield _space(folder)
    with tempfile.TemporaryDirectory(
        prefix="sennit-doctor-", dir=folder if os.access(folder, os.W_OK) else None
    ) as probe:
        yield _tried("file locks", "flock works", lambda: _lock(Path(probe)))
        yield _tried(
            "sockets", "a bell can be rung between processes", lambda: Bell.open(Path(probe), "doctor").close()
        )


def shut(url: str) -> Iterator[Check]:
    """Yield a finding when what was in this store has moved, or is still on its way into it."""
    try:
        schema = schema_of(url)
        if schema.found == schema.latest:
            with reading(url) as reader:
                closing_here = reader.put(closing_of).result()
            if closing_here is not None:
                error = closing_here.error(schema.name)
                yield Check("open", "problem", error.what, error.fix)
    except SennitError as error:
        yield Check("open", "problem", error.what, error.fix)


def _python() -> Check:
    found = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    if sys.version_info < PYTHON_MIN:
        return Check("python", "problem", found, "use Python 3.11 or newer")
    return Check("python", "ok", found)


def sqlite_facts() -> tuple[str, frozenset[str]]:
    """Return the version of SQLite and its compile options; also proves that a WAL database can be made."""
    with (
        tempfile.TemporaryDirectory(prefix="sennit-") as folder,
        closing(connect(Path(folder) / "probe.db")) as connection,
    ):
        version: str = connection.execute("SELECT sqlite_version()").fetchone()[0]
        options = frozenset(row[0] for row in connection.execute("PRAGMA compile_options"))
    return version, options


def _sqlite() -> Check:
    try:
        version, options = sqlite_facts()
    except SennitError as error:
        return Check("sqlite", "problem", error.what, error.fix)
    if tuple(int(part) for part in version.split(".")[:2]) < SQLITE_MIN:
        return Check("sqlite", "problem", version, "use a Python with SQLite 3.35 or newer")
    if "THREADSAFE=0" in options or "OMIT_JSON" in options or "OMIT_WAL" in options:
        lacks = ", ".join(sorted(options & {"THREADSAFE=0", "OMIT_JSON", "OMIT_WAL"}))
        return Check("sqlite", "problem", f"{version}, compiled with {lacks}", "use a Python whose SQLite is complete")
    safe = next((option for option in options if option.startswith("THREADSAFE=")), "THREADSAFE unknown")
    return Check("sqlite", "ok", f"{version}, WAL works, {safe}")


def _pidfd() -> Check:
    if PIDFD:
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError as error:
            found = f"refused here: {error.strerror}"
        else:
            return Check("pidfd", "ok", "the death of a local worker is seen at once")
    else:
        found = "not in this Python or system"
    return Check("pidfd", "notice", found, "nothing to do: one OS thread per watched process does the same")


def _nearest_folder(path: Path) -> Path:
    """Return the first folder upwards that exists: where the database's own would be made."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())


def _writable(folder: Path) -> Check:
    if os.access(folder, os.W_OK | os.X_OK):
        return Check("folder", "ok", f"{folder} is writable")
    return Check("folder", "problem", f"{folder} is not writable for this user", "choose another place with --db")


def _filesystem(path: Path) -> Check:
    kind = filesystem_of(path)
    if kind in NETWORK_FILESYSTEMS:
        fix = "use a path on a local disk: SQLite's locks are unreliable here"
        return Check("file system", "problem", f"{kind} is a network file system", fix)
    if kind in {"tmpfs", "ramfs"}:
        return Check(
            "file system", "notice", f"{kind} is gone after a reboot", "use a path on a disk for work that must last"
        )
    return Check("file system", "ok", kind or "unknown")


def _space(folder: Path) -> Check:
    stat = os.statvfs(folder)
    free_bytes = stat.f_bavail * stat.f_frsize
    if free_bytes < DISK_BYTES_MIN:
        return Check(
            "disk space", "notice", f"{size(free_bytes)} free", "free some: a full disk stops all work, safely"
        )
    return Check("disk space", "ok", f"{size(free_bytes)} free")


def _lock(folder: Path) -> None:
    """Take a lock, and see that a second file description cannot.

    Raises:
        SennitError: the file system grants it twice.
    """
    pen = Pen(folder / "pen")
    with closing(pen), pen, (folder / "pen").open("rb") as second:
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise SennitError("flock is granted twice", fix="use a path on a local disk")


def _tried(name: str, well: str, act: Callable[[], object]) -> Check:
    try:
        act()
    except SennitError as error:
        return Check(name, "problem", error.what, error.fix)
    except OSError as error:
        return Check(name, "problem", f"refused here: {error.strerror}", "use a local disk, or allow it in the sandbox")
    return Check(name, "ok", well)
