"""Behind a transaction pooler: data through it, notifications by a direct connection; a fleet works, and survives its death."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from sennit.store.postgres import PostgresStore
from sennit.testing.contract_tools import Rig, got, running_loop
from tests.crash import test_kill as kills
from tests.crash.fleet import WAIT_S, client, fleet
from tests.crash.nursery import Nursery
from tests.faults.pooler import pooler
from tests.faults.tools import check_history, listens, until


def test_a_fleet_behind_a_transaction_pooler_loses_nothing_when_workers_die(
    fresh_database: Callable[..., str], nursery: Nursery
) -> None:
    direct = fresh_database()
    with pooler(direct, pool_size=4) as url, fleet(url, SENNIT_LISTEN_URL=direct) as workers:
        alive = [workers.fork(nursery) for _ in range(3)]
        workers.journal.wait_ready(*alive)
        at = client(url)
        waves = kills.Waves(at)
        seen = 0
        for _ in range(4):
            for _ in range(15):
                seen = workers.journal.wait_for_more(seen)
            alive.pop(0).kill()
            alive.append(workers.fork(nursery))
        waves.stop()

        assert [handle.result(WAIT_S) for handle in waves.handles] == waves.expected
        check_history(at.app, workers)
        at.app.close()


def test_notifications_through_the_pooler_are_found_not_to_arrive_and_are_done_without(
    postgres_url: str,
) -> None:
    with (
        pooler(postgres_url) as url,
        closing(PostgresStore(url, sockets=False, probe_s=0.2, answer_s=0.2)) as store,
        closing(PostgresStore(postgres_url, sockets=False)) as other,
        running_loop() as loop,
    ):
        rig = Rig(store, loop)
        until(lambda: not listens(store), "a probe that finds out")
        store.want("q", 1)

        [task_id] = got(other.submit([rig.spec()]))

        rig.heard.wait_for(lambda: [task.id for task in rig.heard.claimed] == [task_id])
