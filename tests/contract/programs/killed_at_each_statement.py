"""Dies before the first, the second, the third … statement of one transaction, and says what is there after each death.

Usage: killed_at_each_statement.py FOLDER finish | early. A child process per death, on a file of its own, claims a task of
the thread `t`; `finish` ends it as succeeded with a write to the state, a child, a dependant and the next of its thread
behind it; `early` writes to two threads under the claim. It sends itself SIGKILL when SQLite is about to run the n-th
statement after that call. One line of JSON per child, the last is of one that lived:
{"died", "state", "version", "other", "child", "dependant", "next", "verify", "balanced"}.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from sennit.errors import TaskNotFound
from sennit.model.task import Succeeded
from sennit.model.thread import StateWrite
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Rig, got, running_loop

connect = sqlite3.connect
left: list[int] = []  # statements until death; empty is never


def connect_and_listen(*args: Any, **options: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = connect(*args, **options)
    connection.set_trace_callback(die_in_time)
    return connection


def die_in_time(_: str) -> None:
    if left:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def run(path: Path, how: str, statements: int) -> None:
    """In the child: do it, and die in the middle."""
    sqlite3.connect = connect_and_listen  # type: ignore[assignment]
    with running_loop() as loop, closing(SqliteStore(path, durability="normal")) as store:
        rig = Rig(store, loop)
        first, child = rig.spec(thread_id="t"), rig.spec(queue="children")
        rig.submit(first, rig.spec(thread_id="t"), rig.spec(parents=(first.ref,)))
        task = rig.run(first.ref.id)
        writes = [StateWrite(thread_id=thread_id, expected=0, data=b"1") for thread_id in ("t", "u")]
        left.append(statements)
        if how == "finish":
            got(store.finish([Succeeded(task.claim, b"1", (child,), tuple(writes))]))
        else:
            got(store.write_states(writes, claim=task.claim))
        left.clear()


def look(path: Path, *, died: bool) -> dict[str, Any]:
    """In the parent: say what is there."""
    with closing(SqliteStore(path, durability="normal")) as store:

        def state(task_id: int) -> str:
            try:
                return str(got(store.task(task_id)).state)
            except TaskNotFound:
                return "missing"

        views = got(store.tasks())[::-1]
        children = [view for view in views if view.queue == "children"]
        first, behind, dependant = (view for view in views if view.queue == "q")
        return {
            "died": died,
            "state": str(first.state),
            "version": got(store.state("t")).version,
            "other": got(store.state("u")).version,
            "child": state(children[0].id) if children else "missing",
            "dependant": str(dependant.state),
            "next": str(behind.state),
            "verify": got(store.verify()),
            "balanced": got(store.ledger()).balanced,
        }


def main(folder: Path, how: str) -> None:
    died, statements = True, 0
    while died:
        path = folder / f"{how}-{statements}.db"
        pid = os.fork()  # one OS thread here: the stores of `look` are closed
        if not pid:
            run(path, how, statements)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        died = os.WIFSIGNALED(status)
        if not died and os.waitstatus_to_exitcode(status):
            sys.exit("a child failed in a way that was not asked for")
        sys.stdout.write(json.dumps(look(path, died=died)) + "\n")
        sys.stdout.flush()
        statements += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
