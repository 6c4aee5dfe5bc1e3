"""A worker without a runtime: runs bodies of threads on a standing order, straight on the store, until it is killed.

Usage: thread_worker.py FILE COUNT_OR_ASK, and a journal (tests.crash.fleet) in FLEET_JOURNAL. `count` adds 1 to the state
of its thread and to that of the thread `all`, in the transaction of its success; between reading and writing it waits
until nobody can write to the pipe FLEET_GATE. `ask` asks three questions and returns the answers. Each ending is written down before it is recorded: what follows in a thread can only start after that.
"""

from __future__ import annotations

import os
import sys
from queue import SimpleQueue

import msgspec

from sennit.model.task import Claimed, Ending, Parked, Succeeded, WorkerInfo
from sennit.model.thread import Answer, AskSpec, StateWrite
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Recorder, got, running_loop

SLOTS = 2
QUESTIONS = ("colour", "size", "when")


def say(what: str, task_id: int = 0, attempt: int = 0, note: str = "") -> None:
    os.write(int(os.environ["FLEET_JOURNAL"]), f"{what} {task_id} {attempt} {os.getpid()} 0 {note}\n".encode())


class Hands(Recorder):
    """Puts what is claimed where the main OS thread takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: SimpleQueue[Claimed] = SimpleQueue()

    def on_claimed(self, tasks: list[Claimed]) -> None:
        for task in tasks:
            self.tasks.put(task)


def count(store: SqliteStore, task: Claimed) -> Ending:
    writes = []
    for thread_id in (str(task.thread_id), "all"):
        now = got(store.state(thread_id))
        writes.append(StateWrite(thread_id=thread_id, expected=now.version, data=b"%d" % (int(now.data or b"0") + 1)))
    say("read", task.id, task.attempt)
    os.read(int(os.environ["FLEET_GATE"]), 1)  # until it is open; then for ever
    return Succeeded(task.claim, b"1", writes=tuple(writes))


def ask(task: Claimed) -> Ending:
    """Ask what has no answer yet: all at once, or one after the other."""
    missing = [AskSpec(key=key, question=f"{key}?") for key in QUESTIONS if key not in task.steps]
    if missing:
        return Parked(task.claim, "ask", tuple(missing if task.id % 2 else missing[:1]))
    answers = {key: msgspec.json.decode(task.steps[key], type=Answer).value for key in QUESTIONS}
    return Succeeded(task.claim, msgspec.json.encode(answers))


def main(path: str, mode: str) -> None:
    with running_loop() as loop:
        store = SqliteStore(path, durability="normal")
        (worker_id,) = store.take_ids(1)
        hands = Hands()
        worker = WorkerInfo(id=worker_id, pid=os.getpid(), host="threads", boot_id="threads", queues={"q": SLOTS})
        got(store.join(worker, hands, loop, lease_us=600_000_000))
        say("ready", note=str(worker_id))
        store.want("q", SLOTS)
        while True:
            task = hands.tasks.get()
            say("start", task.id, task.attempt)
            ended: bool | None = None
            while ended is None:
                ending = count(store, task) if mode == "count" else ask(task)
                say("end" if isinstance(ending, Succeeded) else "park", task.id, task.attempt)
                (ended,) = got(store.finish([ending]))
                if ended is None:
                    say("conflict", task.id, task.attempt)
            store.want("q", 1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
