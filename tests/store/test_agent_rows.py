"""Views of agents as rows: what `verify` finds, what one commit holds, and what PostgreSQL does side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
import pytest

from sennit.model.agent import AgentView
from sennit.model.task import Claim, GivenBack, Succeeded
from sennit.store.database import Connection
from sennit.store.postgres import PostgresStore
from sennit.store.postgres_server import PEN
from sennit.store.row_store import RowStore
from sennit.store.sqlite import SqliteStore
from sennit.sync.ack import Ack
from sennit.testing.contract_tools import TIMEOUT_S, Rig, got, running_loop

SHARE_PEN = f"SELECT pg_advisory_xact_lock_shared({PEN}, 'sennit_task'::regclass::oid::int)"
BLOCKED = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = %s"
NOTE = "SELECT attempt FROM sennit_note_agents(ARRAY[%s]::bigint[], '{1}', '{idle}', '{0}', ARRAY['stale'::bytea])"


def view(doing: str = "") -> AgentView:
    return AgentView(task_id=0, agent="work", status="working", doing=doing)


@pytest.fixture(params=["sqlite", "postgres"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """One worker at a store of each kind with rows."""
    with ExitStack() as stack:
        store: RowStore
        if request.param == "sqlite":
            store = SqliteStore(tmp_path / "tasks.db", durability="normal")
        else:
            store = PostgresStore(request.getfixturevalue("postgres_url"), durability="normal")
        yield Rig(stack.enter_context(closing(store)), stack.enter_context(running_loop()))


def rows_of(rig: Rig) -> RowStore:
    assert isinstance(rig.store, RowStore)
    return rig.store


def in_one_batch(rig: Rig, put: Callable[[], list[Ack[bool]]]) -> list[bool]:
    """Return what is answered to calls that came while the writer was busy."""
    begun, go_on = threading.Event(), threading.Event()

    def hold(_connection: Connection, _effects: object) -> None:
        begun.set()
        go_on.wait(TIMEOUT_S)

    held = rows_of(rig).put(hold)
    assert begun.wait(TIMEOUT_S)
    acks = put()
    go_on.set()
    got(held)
    return [got(ack) for ack in acks]


def test_verify_finds_a_view_without_task_and_one_of_an_attempt_that_has_not_begun(rig: Rig) -> None:
    lost, early = rig.start(), rig.start()
    for task in (lost, early):
        assert got(rig.store.note_agent(task.claim, view()))
    rig.succeed(lost)

    def break_it(connection: Connection, _: object) -> None:
        connection.execute("DELETE FROM sennit_task WHERE id = ?", (lost.id,))
        connection.execute("UPDATE sennit_agent SET attempt = 2 WHERE task_id = ?", (early.id,))

    got(rows_of(rig).put(break_it))

    broken = got(rig.store.verify())
    assert f"the view of the agent of task {lost.id} is kept, and the task is not" in broken
    assert f"the agent of task {early.id} has spoken in attempt 2, and attempt 1 runs" in broken


def test_hundreds_of_notes_share_a_commit_and_the_last_of_each_task_stays(rig: Rig) -> None:
    tasks = [rig.start() for _ in range(4)]
    before = rows_of(rig)._writer.commits

    heard = in_one_batch(
        rig, lambda: [rig.store.note_agent(task.claim, view(str(n))) for n in range(100) for task in tasks]
    )

    assert heard == [True] * 400
    assert rows_of(rig)._writer.commits - before <= 4
    assert {v.task_id: v.doing for v in got(rig.store.agents())} == {task.id: "99" for task in tasks}


def test_of_one_batch_each_call_is_answered_for_itself(rig: Rig) -> None:
    task, ends = rig.start(), rig.start()
    gone = Claim(task.id, 7)

    heard = in_one_batch(
        rig,
        lambda: [
            rig.store.note_agent(gone, view("stale")),
            rig.store.save_step(task.claim, "a", b"1"),
            rig.store.note_agent(task.claim, view("first")),
            rig.store.save_step(gone, "a", b"2"),
            rig.store.note_agent(Claim(10**12, 1), view("of nobody")),
            rig.store.note_agent(task.claim, view("last")),
            rig.store.note_agent(ends.claim, view("its last")),
        ],
    )

    assert heard == [False, True, True, False, False, True, True]
    assert got(rig.store.ledger()).refused == 3
    assert rig.finish(Succeeded(ends.claim, b"1"), GivenBack(task.claim)) == [True, True]
    assert [(v.doing, v.status) for v in got(rig.store.agents())] == [("its last", "done"), ("last", "waiting")]
    assert rig.run(task.id).steps == {"a": b"1"}


# ---------------------------------------------------------------- PostgreSQL, side by side


def test_a_note_is_stored_while_others_are_in_the_middle_of_plain_transactions(postgres_url: str) -> None:
    with (
        running_loop() as loop,
        closing(PostgresStore(postgres_url, durability="normal")) as store,
        psycopg.connect(postgres_url) as other,
    ):
        rig = Rig(store, loop)
        task = rig.start()

        with other.transaction():
            other.execute(SHARE_PEN.encode())
            assert got(store.note_agent(task.claim, view()))
            beside = store.release_agent(task.id)  # this one waits for all others
            assert got(store.agents(live=True))[0].task_id == task.id
            assert not beside.done

        assert got(beside) is not None


def test_a_note_that_waited_for_one_of_a_later_attempt_does_not_replace_it(postgres_url: str) -> None:
    """It saw its attempt held, and then stood in line for the row behind the later one."""
    with (
        running_loop() as loop,
        closing(PostgresStore(postgres_url, durability="normal")) as store,
        psycopg.connect(postgres_url, autocommit=True) as first,
        psycopg.connect(postgres_url, autocommit=True) as later,
    ):
        task = Rig(store, loop).start()
        assert got(store.note_agent(task.claim, view()))
        with later.transaction():
            later.execute("UPDATE sennit_agent SET attempt = 2, info = 'later'::bytea")
            note = threading.Thread(target=lambda: first.execute(NOTE.encode(), (task.id,)))
            note.start()
            until_s = time.monotonic() + TIMEOUT_S
            while later.execute(BLOCKED.encode(), (first.info.backend_pid,)).fetchone() == (0,):
                assert time.monotonic() < until_s
                time.sleep(0.005)  # sleep: a server tells nobody that somebody waits for a row
        note.join(TIMEOUT_S)

        assert later.execute("SELECT attempt, info FROM sennit_agent").fetchall() == [(2, b"later")]
