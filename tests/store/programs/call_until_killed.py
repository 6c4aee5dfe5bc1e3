"""Calls a provider again and again from a process that is no worker. Usage: call_until_killed.py FILE CALLS FOLDER.

Each call puts a file into FOLDER while it holds its permit, so that whoever counts them sees how many are on their way.
Says the most it saw, `most N`, after CALLS calls; with CALLS 0 it says `held`, and holds one permit for ever.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from sennit.model.provider import CallReport, PermitRequest
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import got


def call(store: SqliteStore, folder: Path) -> int:
    """Make one call; return how many were on their way."""
    (permit_id,) = store.take_ids(1)
    got(store.take_permit(PermitRequest(id=permit_id, provider="p")))
    mine = folder / str(permit_id)
    mine.touch()
    seen = len(list(folder.iterdir()))
    mine.unlink()
    assert got(store.return_permit(permit_id, CallReport()))
    return seen


def main(path: str, calls: int, folder: Path) -> None:
    with closing(SqliteStore(path, durability="normal")) as store:
        if calls:
            with ThreadPoolExecutor(4) as pool:
                seen = list(pool.map(lambda _: call(store, folder), range(calls)))
            sys.stdout.write(f"most {max(seen)}\n")
        else:
            got(store.take_permit(PermitRequest(id=store.take_ids(1)[0], provider="p")))
            sys.stdout.write("held\n")
            sys.stdout.flush()
            threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
