"""A new data folder for PostgreSQL, made by initdb once per environment and copied from then on.

sys.prefix/servers/cluster-<hash>       of the program, its options and the account; never started, only copied
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sennit.testing.server_folder import Account, reachable

__all__ = ["OURS", "made_once"]

OURS: Final = Path(sys.prefix, "servers")  # also where dev.py puts servers that the system does not have


def made_once(initdb: Sequence[str], account: Account | None) -> Path | None:
    """Return a folder to copy, made by the command line `initdb` (without `-D`); None where none can be kept.

    Args:
        account: uid and gid of the owner of the folder; None: ourselves.
    """
    program = Path(initdb[0]).resolve()
    key = f"{program} {program.stat().st_mtime_ns} {initdb[1:]} {account}"
    folder = OURS / f"cluster-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    try:
        OURS.mkdir(mode=0o755, exist_ok=True)
        if account is not None and not reachable(OURS, account):
            return None
        with (OURS / "cluster.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return folder if folder.exists() else _make(initdb, folder, account)
    except PermissionError:
        return None  # an environment that is not ours to write in


def _make(initdb: Sequence[str], folder: Path, account: Account | None) -> Path | None:
    """Run initdb in a folder beside and move it into place when it is whole."""
    unfinished = folder.with_name("cluster.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(mode=0o700)
    argv = [*initdb, "-D", str(unfinished)]
    if account is None:
        done = subprocess.run(argv, capture_output=True, check=False)
    else:
        os.chown(unfinished, *account)
        uid, gid = account
        done = subprocess.run(argv, capture_output=True, check=False, user=uid, group=gid, extra_groups=[], cwd="/")
    if done.returncode:
        return None  # the caller runs initdb itself, and has a log to show
    unfinished.rename(folder)
    return folder
