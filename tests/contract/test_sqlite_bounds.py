"""Bounds in the file: a process that only looks and answers keeps to what the workers enforce."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from sennit.model.admission import Bounds
from sennit.model.lifecycle import State
from sennit.model.thread import Answer, AskSpec, Decision
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import Rig, got, running_loop


def test_an_answer_from_a_process_without_bounds_of_its_own_lets_nobody_past_those_of_the_workers(
    tmp_path: Path,
) -> None:
    path = tmp_path / "tasks.db"
    with running_loop() as loop, closing(SqliteStore(path, durability="normal", bounds=Bounds(threads_max=1))) as store:
        rig = Rig(store, loop)
        asker = rig.start(thread_id="a")
        rig.park(asker, AskSpec(key="k", question="?"))
        rig.start(thread_id="b")  # takes the only room

        with closing(SqliteStore(path, durability="normal")) as guest:
            (ask,) = got(guest.asks())
            got(guest.answer([Decision(ask_id=ask.id, answer=Answer(state="answered"))]))

        assert (rig.state(asker.id), rig.reason(asker.id)) == (State.WAITING, (State.WAITING, "threads_max"))
        rig.check()


def test_the_worker_that_joined_last_decides(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    with running_loop() as loop:
        for threads_max in (3, 0):
            bounds = Bounds(threads_max=threads_max)
            with closing(SqliteStore(path, durability="normal", bounds=bounds)) as store:
                Rig(store, loop)
            with closing(SqliteStore(path, durability="normal")) as guest:
                assert guest.bounds == bounds
