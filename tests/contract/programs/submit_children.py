"""Hands in three tasks after each parent whose id comes in on stdin, as fast as they come. Usage: submit_children.py FILE.

Says how many it handed in when stdin ends.
"""

from __future__ import annotations

import sys
from contextlib import closing

from sennit.model.task import Ref, TaskSpec
from sennit.store.sqlite import SqliteStore


def main(path: str) -> None:
    with closing(SqliteStore(path, durability="normal")) as store:
        acks = []
        for line in sys.stdin:
            for child_id in store.take_ids(3):
                spec = TaskSpec(
                    ref=Ref(child_id), handler="work", queue="children", payload=b"{}", parents=(Ref(int(line)),)
                )
                acks.append(store.submit([spec]))
        sys.stdout.write(f"{sum(len(ack.result(timeout_s=30)) for ack in acks)}\n")


if __name__ == "__main__":
    main(sys.argv[1])
