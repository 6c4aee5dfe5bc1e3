"""Where a test server lives: an account that is not root, a port that stays free, and a folder that is removed.

The folder is locked (flock) by whoever will remove it: the process that made it, then its keeper. One whose lock is free
was left behind by a crash that took both; whoever makes the next folder removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import random
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from typing import Final

from sennit.errors import StoreUnavailable

__all__ = ["Account", "account_to_use", "free_port", "new_folder", "reachable"]

ACCOUNTS: Final = ("postgres", "nobody")  # who runs the server when we are root
MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a file system in memory, under the names that mkdtemp makes
MEMORY_BYTES_MIN: Final = 1 << 30  # containers often have 64 MiB
PORT_MIN: Final = 15_000
EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
PORTS_TRIED: Final = 200

Account = tuple[int, int]


def account_to_use() -> Account | None:
    """Return uid and gid of an unprivileged account if we are root, else None."""
    if os.geteuid():
        return None
    for name in ACCOUNTS:
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return found.pw_uid, found.pw_gid
    raise StoreUnavailable(
        f"there is no account to run a server as: neither {' nor '.join(ACCOUNTS)} exists",
        why="we are root, and PostgreSQL refuses to run as root",
        fix="run as an ordinary user, or add one of these accounts",
    )


def reachable(path: Path, account: Account) -> bool:
    """Return whether an account may enter all folders down to `path`, by owner or as one of all others."""
    uid, _ = account
    for folder in [path, *path.parents]:
        found = folder.stat()
        wanted = stat.S_IXUSR if found.st_uid == uid else stat.S_IXOTH
        if not found.st_mode & wanted:
            return False
    return True


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on.

    Below the range from which the system takes ports for outgoing connections, where it has one we can read: a server
    that is restarted must find its port free again.
    """
    try:
        port_max = int(EPHEMERAL.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        port_max = 0
    for _ in range(PORTS_TRIED if port_max > PORT_MIN else 0):
        port = random.randrange(PORT_MIN, port_max)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


def new_folder(name: str, account: Account | None, *, in_memory: bool = False) -> tuple[Path, int]:
    """Make a folder for `account`; return it and the descriptor that holds its lock.

    Args:
        in_memory: in /dev/shm if that is there, has 1 GiB left and TMPDIR does not say otherwise. Measured: a data
            folder of PostgreSQL is copied, and a database made, in a fifth of the time.
    """
    parent = Path(tempfile.gettempdir())
    if in_memory and "TMPDIR" not in os.environ and MEMORY.is_dir():
        free = os.statvfs(MEMORY)
        if os.access(MEMORY, os.W_OK) and free.f_bavail * free.f_frsize >= MEMORY_BYTES_MIN:
            parent = MEMORY
    prefix = f"sennit-{name}-"
    for place in {parent, MEMORY, Path(tempfile.gettempdir())}:
        _sweep(place, prefix)
    made = Path(tempfile.mkdtemp(prefix="sennit-new-", dir=parent))
    lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    if account is not None:
        os.chown(made, *account)
    folder = made.with_name(made.name.replace("sennit-new-", prefix))  # a sweep sees it only now that it is locked
    made.rename(folder)
    return folder, lock


def _sweep(parent: Path, prefix: str) -> None:
    """Remove the folders that nobody is left to remove."""
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # another account's, or removed by somebody else this moment
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
