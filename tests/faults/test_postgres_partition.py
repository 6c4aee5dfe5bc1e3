"""A worker that is cut off or frozen for longer than its lease: others take over, what it writes late is refused.

    cut off ── fence: bodies stopped ── lease ends ── others start them again ── healed: refused, joins again

On one host others would see at once that a process lives; a folder of its own for life locks makes it one of another host.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal

import psycopg
import pytest

from sennit import Handle
from sennit.store.postgres import PostgresStore
from sennit.store.postgres_wire import open_connection
from sennit.testing.contract_tools import got
from sennit.testing.faultproxy import FaultProxy
from tests.crash.fleet import Fleet, Handlers, Record, client, fleet, values
from tests.faults.tools import Gate, check_history, proxy_of, through

LEASE_S = 2.0
EACH = 3  # bodies that run when it happens

Fault = Literal["both", "to_client"]


@pytest.fixture
def url(fresh_database: Callable[..., str]) -> str:
    return fresh_database()


@pytest.fixture
def proxy(url: str) -> Iterator[FaultProxy]:
    with proxy_of(url) as some:
        yield some


@pytest.fixture
def workers(url: str) -> Iterator[Fleet]:
    with fleet(url, SENNIT_LEASE_S=str(LEASE_S)) as some:
        yield some


@pytest.fixture
def at(url: str) -> Iterator[Handlers]:
    handlers = client(url)
    yield handlers
    handlers.app.close()


@pytest.fixture
def far(tmp_path: Path) -> dict[str, str]:
    """The environment of a worker on another machine: neighbours see whether each other live, and this one has none."""
    return {"TMPDIR": str(tmp_path)}


def of(process: subprocess.Popen[bytes], what: str, workers: Fleet) -> list[Record]:
    return [r for r in workers.journal.of(what) if r.pid == process.pid]


def hold(workers: Fleet, at: Handlers, victim: subprocess.Popen[bytes]) -> list[Handle[str]]:
    """Have bodies run in the victim that do not end by themselves."""
    handles = [at.hold.options(crashes_max=9).submit() for _ in range(EACH)]
    workers.journal.wait_for("start", EACH, where=lambda r: r.pid == victim.pid)
    return handles


def goes_on(
    workers: Fleet, at: Handlers, victim: subprocess.Popen[bytes], others: list[subprocess.Popen[bytes]]
) -> None:
    """The victim works again: it is the only one left."""
    for other in others:
        other.send_signal(signal.SIGTERM)
        other.wait()
    assert values([at.mark.submit("again")]) == ["again"]
    assert of(victim, "start", workers)[-1].note == "again"


@pytest.mark.parametrize("direction", ["both", "to_client"])
def test_a_worker_that_is_cut_off_stops_before_its_lease_ends_and_others_take_over(
    workers: Fleet, at: Handlers, proxy: FaultProxy, far: dict[str, str], direction: Fault
) -> None:
    [victim] = workers.start_ready(1, SENNIT_DB=through(proxy, workers.url), **far)
    handles = hold(workers, at, victim)
    others = workers.start_ready()

    proxy.drop(direction)
    assert values(handles) == ["done by another"] * EACH

    stopped = workers.journal.wait_for("stopped", EACH)
    started = [r for r in workers.journal.of("start") if r.attempt == 2]
    assert {r.pid for r in stopped} == {victim.pid}
    assert max(r.at_s for r in stopped) < min(r.at_s for r in started)
    proxy.heal()
    goes_on(workers, at, victim, others)
    check_history(at.app, workers)


def test_what_a_frozen_worker_writes_late_is_refused(workers: Fleet, at: Handlers, far: dict[str, str]) -> None:
    ways = ["ending", "step", "child"]
    [frozen] = workers.start_ready(1, **far)
    handles = at.late.map(ways, [LEASE_S * 0.6] * len(ways))
    workers.journal.wait_for("start", len(ways))

    frozen.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, frozen.pid, os.WSTOPPED | os.WNOWAIT)
    [other] = workers.start_ready()
    assert values(handles) == ["attempt 2"] * len(ways)
    frozen.send_signal(signal.SIGCONT)
    workers.journal.wait_for("woke", len(ways))

    goes_on(workers, at, frozen, [other])
    assert of(frozen, "step", workers) == of(frozen, "child", workers) == []
    assert [v.attempt for h in handles for v in [h.view().result()]] == [2] * len(ways)
    check_history(at.app, workers)


def test_a_worker_that_is_frozen_with_the_pen_in_its_hand_loses_it_within_seconds(
    workers: Fleet, at: Handlers, url: str
) -> None:
    """Inside a transaction: the server ends it (`idle_in_transaction_session_timeout`), others write and take over."""
    gate = Gate(url, "sennit_task", on="UPDATE", when="write")
    [frozen] = workers.start_ready()
    with gate:
        ended = at.mark.submit("held up")
        gate.wait()
        frozen.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, frozen.pid, os.WSTOPPED | os.WNOWAIT)
        gate.open()
        [other] = workers.start_ready()
        assert values([at.mark.submit("meanwhile"), ended]) == ["meanwhile", "held up"]
    frozen.send_signal(signal.SIGCONT)

    goes_on(workers, at, frozen, [other])
    check_history(at.app, workers)


def test_a_client_that_stands_still_where_the_server_does_not_count_it_as_idle_loses_the_pen(
    fresh_database: Callable[..., str],
) -> None:
    """It was frozen between two statements that it sends without waiting: those who want to write end it."""
    url = fresh_database()
    with (
        closing(PostgresStore(url, frozen_s=0.5)) as store,
        closing(open_connection(url)) as connection,
        ExitStack() as stack,
    ):
        stack.enter_context(connection.pipeline())
        connection.execute("BEGIN")
        begun = connection.execute("SELECT sennit_begin('0', '1', 'on', NULL, 1, 1, 1)")
        begun.fetchone()  # answered, and the server waits for the next statement: without a Sync it has no timer

        got(store.put_schedule("s", 1))

        with pytest.raises(psycopg.OperationalError, match="closed the connection"):
            stack.close()
