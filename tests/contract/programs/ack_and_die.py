"""Hands in, claims and ends tasks as fast as it can, and says what was acknowledged, until it is killed.

Usage: ack_and_die.py FILE full | normal. A line is `stored ID` or `ended ID`, written after the ack and before anything
else is done.
"""

from __future__ import annotations

import os
import sys

from sennit.model.task import Ref, Succeeded, TaskSpec, WorkerInfo
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Recorder, got, running_loop


def say(what: str, task_id: int) -> None:
    os.write(1, f"{what} {task_id}\n".encode())


def main(path: str, durability: str) -> None:
    with running_loop() as loop:
        store = SqliteStore(path, durability=durability)
        (worker_id,) = store.take_ids(1)
        worker = WorkerInfo(id=worker_id, pid=os.getpid(), host="kills", boot_id="kills")
        got(store.join(worker, Recorder(), loop, lease_us=60_000_000))
        while True:
            spec = TaskSpec(ref=Ref(store.take_ids(1)[0]), handler="work", queue="q", payload=b"{}")
            (task_id,) = got(store.submit([spec]))
            say("stored", task_id)
            for task in got(store.claim(worker_id, "q", 1)):
                if got(store.finish([Succeeded(task.claim, b"1")])) == [True]:
                    say("ended", task.id)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
