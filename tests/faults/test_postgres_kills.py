"""kill -9 of worker processes at PostgreSQL: the promises of tests/crash/test_kill.py, on a server with fsync."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from sennit.testing.servers import PostgresServer
from tests.crash import test_kill as kills
from tests.crash.fleet import WAIT_S, client, fleet
from tests.crash.nursery import Nursery


def test_kills_lose_nothing_and_nothing_is_accepted_twice(
    start_postgres: Callable[..., PostgresServer], nursery: Nursery
) -> None:
    url = start_postgres(fsync=True).create_database("fleet")
    with fleet(url, SENNIT_DURABILITY="full") as workers:
        at = client(url, durability="full")
        waves = kills.Waves(at)

        killed = kills.kill_at_random_points(workers, nursery)
        waves.stop()
        results = [handle.result(WAIT_S) for handle in waves.handles]

        assert results == waves.expected
        ledger = at.app.ledger().result()
        assert (ledger.live, ledger.failed, ledger.cancelled, ledger.missing) == (0, 0, 0, 0)
        assert at.app.store.verify().result() == []
        views = {v.id: v for v in at.app.store.tasks(limit=1_000_000).result()}
        at.app.close()
        starts = workers.journal.of("start")
        kills.assert_each_attempt_started_once(starts)
        kills.assert_nothing_started_after_it_was_accepted(starts, {i: v.attempt for i, v in views.items()})
        kills.assert_no_saved_step_ran_again(workers.journal)
        times_s = kills.recovery_times_s(workers.journal, killed)
        print(  # noqa: T201 - the figures, with `pytest -s`
            f"\n{len(killed)} kills, {ledger.submitted} tasks, {ledger.crashed} attempts crashed, {ledger.missing} lost; "
            f"recovery p50 {median(times_s):.3f} s, worst {max(times_s):.3f} s over {len(times_s)} attempts"
        )
        assert median(times_s) <= kills.RECOVERY_P50_S
        assert max(times_s) <= kills.RECOVERY_WORST_S
