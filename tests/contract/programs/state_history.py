"""Reads and writes the states of a few threads from several OS threads, and says what each operation met.

Usage: state_history.py FILE WHO WRITERS OPERATIONS. For each line on stdin, the name of a window, it works on the threads
`WINDOW-0` and `WINDOW-1` and then prints one line of JSON: [[thread_id, what, called_ns, ended_ns, expected, value,
operation_id, version, result], …], as in `linearizable.Call`.
"""

from __future__ import annotations

import json
import random
import sys
import time
from contextlib import closing

from sennit.errors import ConcurrentModificationError
from sennit.model.thread import StateView, StateWrite
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import got, in_threads

THREADS = 2
Line = tuple[str, str, int, int, int, int, str, int, int | None]


def value_of(view: StateView) -> int:
    return int(view.data or b"0")


class Writer:
    """One OS thread's part in one window."""

    def __init__(self, store: SqliteStore, chance: random.Random, window: str) -> None:
        self.store = store
        self.chance = chance
        self.window = window
        self.seen = dict.fromkeys((f"{window}-{k}" for k in range(THREADS)), 0)
        self.lines: list[Line] = []

    def work(self, operations: int) -> None:
        for _ in range(operations):
            thread_id = self.chance.choice(list(self.seen))
            {0: self.read, 1: self.read, 2: self.add, 3: self.write, 4: self.write}[self.chance.randrange(5)](thread_id)

    def say(self, thread_id: str, what: str, called_ns: int, *facts: int | str | None) -> None:
        self.lines.append((thread_id, what, called_ns, time.monotonic_ns(), *facts))  # type: ignore[arg-type]

    def read(self, thread_id: str) -> None:
        called_ns = time.monotonic_ns()
        view = got(self.store.state(thread_id))
        self.say(thread_id, "read", called_ns, 0, 0, "", view.version, value_of(view))
        self.seen[thread_id] = view.version

    def add(self, thread_id: str) -> None:
        called_ns, amount = time.monotonic_ns(), self.chance.randint(1, 9)
        while True:
            now = got(self.store.state(thread_id))
            total = value_of(now) + amount
            try:
                (view,) = got(self.store.write_states([self.change(thread_id, now.version, total)]))
            except ConcurrentModificationError:
                continue
            self.say(thread_id, "add", called_ns, 0, amount, "", view.version, total)
            self.seen[thread_id] = view.version
            return

    def write(self, thread_id: str) -> None:
        expected = self.seen[thread_id]
        # Repeats of an operation say the same, whoever sends them: that is what its id stands for.
        operation_id = self.chance.choice(["", "", "o"])
        value = 4711 if operation_id else self.chance.randint(1, 10**6)
        write = self.change(thread_id, expected, value, operation_id=operation_id or None)
        called_ns = time.monotonic_ns()
        version: int
        result: int | None
        try:
            (view,) = got(self.store.write_states([write]))
        except ConcurrentModificationError as conflict:
            version, result = conflict.actual, None
        else:
            version, result = view.version, value_of(view)
        self.say(thread_id, "write", called_ns, expected, value, operation_id, version, result)
        self.seen[thread_id] = version

    def change(self, thread_id: str, expected: int, value: int, operation_id: str | None = None) -> StateWrite:
        return StateWrite(thread_id=thread_id, expected=expected, data=b"%d" % value, operation_id=operation_id)


def main(path: str, who: str, writers: int, operations: int) -> None:
    with closing(SqliteStore(path, durability="normal")) as store:
        sys.stdout.write("open\n")
        sys.stdout.flush()
        for line in sys.stdin:
            window = line.strip()
            mine = [Writer(store, random.Random(f"{window} {who} {k}"), window) for k in range(writers)]
            in_threads(writers, lambda k, mine=mine: mine[k].work(operations))  # type: ignore[misc]
            sys.stdout.write(json.dumps([said for writer in mine for said in writer.lines]) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
