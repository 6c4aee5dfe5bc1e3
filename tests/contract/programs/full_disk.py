"""Fills a real file system of 2 MiB under a store. Usage: full_disk.py FOLDER full | normal, in a mount namespace.

Mounts over FOLDER, so that it goes with the process. Prints `nothing lost`, or fails with what was.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

from sennit.errors import StoreFull
from sennit.model.lifecycle import State
from sennit.model.task import Ref, Succeeded, TaskSpec
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Rig, got, running_loop


def main(folder: Path, durability: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    path = folder / "tasks.db"
    with running_loop() as loop, closing(SqliteStore(path, durability=durability)) as store:
        rig = Rig(store, loop)
        held, waiting = rig.start(), rig.put(queue="later")
        filler = fill(folder / "filler")
        stored = submit_until_full(store)
        refuses_endings(rig, Succeeded(held.claim, b"z" * 300_000))

        filler.unlink()

        rig.heard.wait_for(lambda: [task.id for task in rig.heard.claimed] == [waiting])
        assert rig.finish(Succeeded(held.claim, b"z" * 300_000)) == [True]
        more = got(store.submit([spec(store)]))
        stored += more
        rig.check()
    with closing(SqliteStore(path)) as store:
        kept = {view.id: view.state for view in got(store.tasks(limit=10_000))}
        assert kept == {
            **dict.fromkeys(stored, State.READY),
            held.id: State.SUCCEEDED,
            waiting: State.RUNNING,
        }
        assert got(store.verify()) == []
    sys.stdout.write("nothing lost\n")


def fill(path: Path) -> Path:
    """Leave about 200 KiB of the file system."""
    path.write_bytes(bytes(1_200_000))
    return path


def spec(store: SqliteStore) -> TaskSpec:
    (task_id,) = store.take_ids(1)
    return TaskSpec(ref=Ref(task_id), handler="work", queue="q", payload=b"x" * 6000)


def submit_until_full(store: SqliteStore) -> list[int]:
    """Hand in tasks, several to a commit, until some are refused; return the ids that were acknowledged."""
    stored: list[int] = []
    full = False
    while not full:
        for ack in [store.submit([spec(store)]) for _ in range(8)]:
            try:
                ids = got(ack)
            except StoreFull:
                full = True
            else:
                stored += ids
    return stored


def refuses_endings(rig: Rig, ending: Succeeded) -> None:
    """An ending says so and changes nothing. The order raised with it stands, and nobody will raise it again."""
    wants: list[dict[str, int]] = [{"later": 1}, {}, {}]
    for want in wants:
        try:
            got(rig.store.finish([ending], want=want))
        except StoreFull:
            continue
        raise AssertionError("an ending was accepted on a full disk")
    assert rig.state(ending.claim.task_id) is State.RUNNING


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
