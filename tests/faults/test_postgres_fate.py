"""A commit whose answer is lost: exactly one outcome, whatever became of server, network and transaction number.

    store ──COMMIT──► proxy ──► server (holds it at a gate, then writes it)
          ◄── reset ─ proxy ◄── "committed"

The gate is a trigger that waits for a lock of the test's; nothing in the store knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import psycopg
import pytest

from sennit.errors import StoreUnavailable
from sennit.model.lifecycle import State
from sennit.model.task import Succeeded, TaskSpec
from sennit.store.postgres import PostgresStore
from sennit.store.postgres_server import PostgresServer as Database
from sennit.testing.contract_tools import Rig, got, running_loop
from sennit.testing.servers import PostgresServer
from tests.faults.tools import Gate, proxy_of, through

Start = Callable[..., PostgresServer]


class Place:
    """A store behind a proxy, a worker that has joined in it, and another store that is not disturbed."""

    def __init__(self, direct: str, stack: ExitStack, *, patience_s: float = 30.0) -> None:
        self.direct = direct
        self.proxy = stack.enter_context(proxy_of(direct))
        self.other = stack.enter_context(closing(PostgresStore(self.direct)))
        url = through(self.proxy, direct)
        self.store = stack.enter_context(closing(PostgresStore(url, patience_s=patience_s)))
        self.rig = Rig(self.store, stack.enter_context(running_loop()))

    def spec(self) -> TaskSpec:
        return self.rig.spec()

    def gate(self, table: str, *, on: str = "INSERT") -> Gate:
        return Gate(self.direct, table, on=on, when="commit")


@pytest.fixture
def place(fresh_database: Callable[..., str]) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(fresh_database(), stack)


def commit_unheard(place: Place, gate: Gate) -> None:
    """Let the transaction at the gate commit; its answer goes no further than the proxy."""
    gate.wait()
    place.proxy.drop("to_client")
    gate.open()
    place.proxy.wait(lambda now: now.held_to_client_bytes > 0)


def break_and_heal(place: Place) -> None:
    """Break the connection, with what is held back; whoever comes anew is let through."""
    place.proxy.refuse()
    place.proxy.reset()
    place.proxy.heal()


def test_a_transaction_number_that_the_server_gave_again_is_not_taken_for_ours(start_postgres: Start) -> None:
    """What it had written was not on the disk at the crash; after it others commit with the number that was its own.

    Who writes the log meanwhile (every 200 ms by default, and autovacuum) makes the server remember the number.
    """
    server = start_postgres(wal_writer_delay="10s", autovacuum="off")
    url = server.create_database("fate")
    PostgresStore(url).close()
    database = Database(url, patience_s=30)
    with closing(database.connect()) as wire:
        wire.execute(database.begin)
        wire.execute("INSERT INTO sennit_schedule VALUES ('ours', 1)")
        [(number,)] = wire.execute("SELECT pg_current_xact_id()::text").fetchall()
        server.kill()
        server.start()
        with psycopg.connect(url, autocommit=True) as other:
            for n in range(5):
                other.execute("INSERT INTO sennit_schedule VALUES (%s, 1)", (f"theirs {n}",))
            assert other.execute("SELECT pg_xact_status(%s::xid8)", (number,)).fetchone() == ("committed",)

        with pytest.raises(psycopg.OperationalError):
            wire.execute("COMMIT")

        assert not wire.has_committed


def test_a_submit_whose_answer_is_lost_is_stored_once_and_acknowledged(place: Place) -> None:
    with place.gate("sennit_task") as gate:
        spec = place.spec()
        ack = place.store.submit([spec])
        commit_unheard(place, gate)
        assert not ack.done
        break_and_heal(place)

        assert got(ack) == [spec.ref.id]

    assert place.rig.state(spec.ref.id) is State.READY
    assert got(place.other.ledger()).submitted == 1
    place.rig.check()


def test_a_server_that_dies_after_the_commit_and_before_its_answer_has_it(start_postgres: Start) -> None:
    server = start_postgres()
    with ExitStack() as stack:
        place = Place(server.create_database("fate"), stack)
        with place.gate("sennit_task") as gate:
            spec = place.spec()
            ack = place.store.submit([spec])
            commit_unheard(place, gate)
            server.kill()
            break_and_heal(place)
            server.start()

            assert got(ack) == [spec.ref.id]

        assert got(place.other.ledger()).submitted == 1
        place.rig.check()


def test_an_end_whose_answer_is_lost_is_accepted_once_and_known_to_be(place: Place) -> None:
    task = place.rig.start()
    with place.gate("sennit_task", on="UPDATE") as gate:
        ack = place.store.finish([Succeeded(task.claim, b"1")])
        commit_unheard(place, gate)
        break_and_heal(place)

        assert got(ack) == [True]

    ledger = got(place.other.ledger())
    assert (ledger.succeeded, ledger.refused) == (1, 0)
    place.rig.check()


def test_a_claim_whose_answer_is_lost_is_run_by_whoever_it_was_given_to(place: Place) -> None:
    with place.gate("sennit_running") as gate:
        place.store.want("q", 1)
        spec = place.spec()
        ack = place.store.submit([spec])
        commit_unheard(place, gate)
        break_and_heal(place)
        assert got(ack) == [spec.ref.id]
        place.rig.heard.wait_for(lambda: [task.id for task in place.rig.heard.claimed] == [spec.ref.id])

    assert [(v.id, v.attempt) for v in got(place.other.tasks(states=[State.RUNNING]))] == [(spec.ref.id, 1)]
    place.rig.check()


def test_a_commit_that_never_arrived_is_done_once_more_and_only_once(place: Place) -> None:
    gate = Gate(place.direct, "sennit_task", when="write")
    with gate:
        spec = place.spec()
        ack = place.store.submit([spec])
        gate.wait()
        place.proxy.drop("to_server")
        gate.open()
        place.proxy.wait(lambda now: now.held_to_server_bytes > 0)  # what comes after the answer: COMMIT at last
        break_and_heal(place)

        assert got(ack) == [spec.ref.id]

    assert got(place.other.ledger()).submitted == 1
    place.rig.check()


def test_a_commit_that_is_asked_for_and_not_there_never_will_be(postgres_url: str) -> None:
    """Our end of the connection is dead, the other stands in the transaction yet: the question waits for it to end."""
    with proxy_of(postgres_url) as proxy:
        parts = psycopg.conninfo.conninfo_to_dict(postgres_url)
        first_proxy_then_direct = {"host": "127.0.0.1,127.0.0.1", "port": f"{proxy.port},{parts['port']}"}
        url = psycopg.conninfo.make_conninfo(postgres_url, **first_proxy_then_direct)
        database = Database(url, patience_s=30, frozen_s=1.0)
        with closing(database.connect()) as wire, psycopg.connect(postgres_url, autocommit=True) as reader:
            wire.execute(database.begin)
            wire.execute("INSERT INTO sennit_schedule VALUES ('late', 1)")
            proxy.refuse()
            proxy.drop("to_server")
            wire.open().close()

            with pytest.raises(psycopg.OperationalError):
                wire.execute("COMMIT")

            assert reader.execute("SELECT begun_us FROM sennit_fate").fetchall() == [(None,)]
            assert reader.execute("SELECT * FROM sennit_schedule").fetchall() == []


def test_nobody_runs_twice_and_nothing_is_orphaned_when_the_fate_stays_unknown(
    fresh_database: Callable[..., str],
) -> None:
    """The server is away for longer than the patience lasts: the caller hears so, and the claim is handed back later."""
    with ExitStack() as stack:
        place = Place(fresh_database(), stack, patience_s=0.5)
        gate = place.gate("sennit_running")
        with gate:
            place.store.want("q", 1)
            spec = place.spec()
            ack = place.store.submit([spec])
            commit_unheard(place, gate)
            place.proxy.refuse()
            place.proxy.reset()

            with pytest.raises(StoreUnavailable, match="answer to a commit was lost"):
                got(ack)

        assert [v.state for v in got(place.other.tasks())] == [State.RUNNING]  # it was committed: nobody runs it
        place.proxy.heal()
        place.rig.heard.wait_for(lambda: bool(place.rig.heard.claimed))

    with closing(PostgresStore(place.direct)) as after:
        [view] = got(after.tasks())
        assert (view.attempt, view.crashes) == (2, 0)
        assert got(after.verify()) == []
