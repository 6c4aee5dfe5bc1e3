"""One process per session: the programs themselves let several work on one, and mix up their turns.

    session ─► a file lock of this user on this host, held as long as the run
                 └─ held by an earlier attempt of the same task, whose agent has ended: it is frozen, and has nothing to mix up

Sessions lie in files of this host, so that is as far as the lock needs to reach.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from sennit.errors import LockTimeout, SessionBusy, SettingsError
from sennit.sync.filelocks import FileLock
from sennit.sync.lockowner import read_owners

__all__ = ["session_held"]

# How long a process that ends may take to let go of a session.
PATIENCE_S: Final = 10.0
# How long to wait before we look whether who holds it can be passed over.
_SOON_S: Final = 0.3


@asynccontextmanager
async def session_held(
    adapter: str, session_id: str, *, agent: str, whose: str, before: Path | None
) -> AsyncIterator[None]:
    """Hold a session while the block runs; "" is one that has no name yet, and is held by nobody.

    Args:
        whose: the task, as no other store has it.
        before: the folder of its run before, if that worked on this session.

    Raises:
        SessionBusy: another process works on it.
    """
    if not session_id:
        yield
        return
    path = _path(adapter, session_id)
    lock = FileLock(path, timeout_s=PATIENCE_S if before is None else _SOON_S, purpose=whose)
    try:
        await lock.acquire_async()
    except LockTimeout:
        if before is not None and _is_over(before) and all(owner.purpose == whose for owner in read_owners(path)):
            yield
            return
        lock = FileLock(path, timeout_s=PATIENCE_S, purpose=whose)
        try:
            await lock.acquire_async()
        except LockTimeout as error:
            raise SessionBusy(
                f"session {session_id} is in use",
                agent=agent,
                why=error.what,
                fix="wait for that one to end, or start a session of its own",
            ) from None
    try:
        yield
    finally:
        lock.release()


def _is_over(folder: Path) -> bool:
    """Return whether all processes of a run have ended, as its keeper has noted."""
    return (folder / "exit.json").exists()


def _path(adapter: str, session_id: str) -> Path:
    folder = Path(tempfile.gettempdir()) / f"sennit-sessions-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat(follow_symlinks=False).st_uid != os.getuid():
        raise SettingsError(
            f"{folder} belongs to somebody else", fix="remove it, or set TMPDIR to a folder of your own"
        )
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{adapter}-{session_id}")[:200]
    return folder / f"{name}.lock"
