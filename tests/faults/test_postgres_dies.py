"""kill -9 of the PostgreSQL server under load, and its return: what was acknowledged is there, work goes on by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest

from sennit.errors import StoreUnavailable
from sennit.store import postgres_server
from sennit.store.postgres import PostgresStore
from sennit.testing.contract_tools import Rig, got, running_loop
from sennit.testing.servers import PostgresServer
from tests.crash import test_kill as kills
from tests.crash.fleet import WAIT_S, client, fleet


@pytest.mark.parametrize("deaths", [3])
def test_kills_of_the_server_lose_nothing_that_was_acknowledged(
    start_postgres: Callable[..., PostgresServer], deaths: int
) -> None:
    server = start_postgres()
    url = server.create_database("fleet")
    with fleet(url, SENNIT_DURABILITY="full") as workers:
        workers.start_ready(2)
        at = client(url, durability="full")
        waves = kills.Waves(at)
        journal = workers.journal
        seen = 0
        for _ in range(deaths):
            for _ in range(20):
                seen = journal.wait_for_more(seen)
            server.kill()
            server.start()
        for _ in range(20):
            seen = journal.wait_for_more(seen)
        waves.stop()
        results = [handle.result(WAIT_S) for handle in waves.handles]

        assert results == waves.expected
        ledger = at.app.ledger().result()
        assert (ledger.live, ledger.failed, ledger.cancelled, ledger.missing) == (0, 0, 0, 0)
        assert at.app.store.verify().result() == []
        views = {v.id: v for v in at.app.store.tasks(limit=1_000_000).result()}
        at.app.close()
        starts = journal.of("start")
        kills.assert_each_attempt_started_once(starts)
        kills.assert_nothing_started_after_it_was_accepted(starts, {i: v.attempt for i, v in views.items()})
        kills.assert_no_saved_step_ran_again(journal)


def test_every_call_is_answered_while_the_server_is_away(start_postgres: Callable[..., PostgresServer]) -> None:
    server = start_postgres()
    with (
        closing(PostgresStore(server.create_database("away"), patience_s=0.2)) as store,
        running_loop() as loop,
    ):
        rig = Rig(store, loop)
        rig.put()

        server.kill()
        for _ in range(3):  # with a connection that breaks, and without one
            with pytest.raises(StoreUnavailable):
                got(store.submit([rig.spec()]))

        server.start()
        rig.put()
        assert got(store.ledger()).submitted == 2


def test_a_transaction_that_never_began_is_not_taken_for_the_one_before(
    start_postgres: Callable[..., PostgresServer],
) -> None:
    server = start_postgres()
    url = server.create_database("gone")
    PostgresStore(url).close()
    backend = postgres_server.PostgresServer(url)
    with closing(backend.connect()) as wire:
        wire.execute(backend.begin)
        wire.execute("COMMIT")
        assert wire.has_committed

        server.kill()
        wire.drop()  # as when the connection broke right behind that commit
        with pytest.raises(psycopg.OperationalError), wire.open_for_many():
            pass

        assert not wire.has_committed
