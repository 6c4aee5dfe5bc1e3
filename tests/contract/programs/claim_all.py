"""Claims tasks of the queue `q`, seven at a time, until there are none. Usage: claim_all.py FILE WORKER_ID.

Says `joined`, waits for a line on stdin, and then says what it got, an id per line.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing

from sennit.model.task import WorkerInfo
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Recorder, got, running_loop


def main(path: str, worker_id: int) -> None:
    with running_loop() as loop, closing(SqliteStore(path, durability="normal")) as store:
        worker = WorkerInfo(id=worker_id, pid=os.getpid(), host="races", boot_id="races")
        got(store.join(worker, Recorder(), loop, lease_us=60_000_000))
        sys.stdout.write("joined\n")
        sys.stdout.flush()
        sys.stdin.readline()
        while tasks := got(store.claim(worker_id, "q", 7)):
            sys.stdout.write("".join(f"{task.id}\n" for task in tasks))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
