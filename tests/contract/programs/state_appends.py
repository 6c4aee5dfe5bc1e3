"""Appends to the state of the thread `t`, each once, without trying again. Usage: state_appends.py FILE WHO WRITERS N.

Says `open`, waits for a line on stdin, and then says what became of each append, a line each: `done WHO.WRITER.N` or
`conflict WHO.WRITER.N`.
"""

from __future__ import annotations

import sys
from contextlib import closing

from sennit.errors import ConcurrentModificationError
from sennit.model.thread import StateWrite
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import got, in_threads


def main(path: str, who: str, writers: int, n: int) -> None:
    said: list[str] = []

    def work(k: int) -> None:
        for number in range(n):
            name = f"{who}.{k}.{number}"
            now = got(store.state("t"))
            data = (now.data or b"") + f"{name} ".encode()
            try:
                got(store.write_states([StateWrite(thread_id="t", expected=now.version, data=data)]))
            except ConcurrentModificationError:
                said.append(f"conflict {name}\n")
            else:
                said.append(f"done {name}\n")

    with closing(SqliteStore(path, durability="normal")) as store:
        sys.stdout.write("open\n")
        sys.stdout.flush()
        sys.stdin.readline()
        in_threads(writers, work)
        sys.stdout.write("".join(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
