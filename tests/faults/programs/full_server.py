"""Fills the disk under the tables of a PostgreSQL server. Usage: full_server.py FOLDER, in a mount namespace.

Mounts a small file system over FOLDER, which goes with the process, and makes a tablespace there: the log of the server is
elsewhere and stays sound. Prints `nothing lost`, or fails with what was.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from sennit.errors import StoreFull
from sennit.model.lifecycle import State
from sennit.model.task import Succeeded, TaskSpec
from sennit.store.postgres import PostgresStore
from sennit.testing.contract_tools import Rig, got, running_loop
from sennit.testing.servers import PostgresServer
from tests.servers import postgres_programs

PAYLOAD = os.urandom(6000)  # it cannot be compressed away


def main(folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=True)
    with PostgresServer(programs=postgres_programs()) as server:
        space = folder / "space"
        space.mkdir()
        if server.account is not None:
            os.chown(space, *server.account)
        folder.chmod(0o711)  # the server's account must come through
        server.query(f"CREATE TABLESPACE small LOCATION '{space}'")
        url = server.create_database("fills")
        server.query("ALTER DATABASE fills SET TABLESPACE small")
        fill_and_free(url, folder / "filler")
    sys.stdout.write("nothing lost\n")


def fill_and_free(url: str, filler: Path) -> None:
    with closing(PostgresStore(url)) as store, running_loop() as loop:
        rig = Rig(store, loop)
        held = rig.start()
        room = os.statvfs(filler.parent)
        filler.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - 700_000)))
        stored = submit_until_full(rig)
        filler.unlink()

        assert rig.finish(Succeeded(held.claim, PAYLOAD * 50)) == [True]
        stored += rig.submit(spec(rig))
        kept = {view.id: view.state for view in got(store.tasks(limit=10_000))}
        assert kept == {**dict.fromkeys(stored, State.READY), held.id: State.SUCCEEDED}
        rig.check()


def spec(rig: Rig) -> TaskSpec:
    return rig.spec(payload=PAYLOAD)


def submit_until_full(rig: Rig) -> list[int]:
    """Hand in tasks, several to a commit, until some are refused; return the ids that were acknowledged."""
    stored: list[int] = []
    full = False
    while not full:
        for ack in [rig.store.submit([spec(rig)]) for _ in range(8)]:
            try:
                ids = got(ack)
            except StoreFull:
                full = True
            else:
                stored += ids
    return stored


if __name__ == "__main__":
    main(Path(sys.argv[1]))
