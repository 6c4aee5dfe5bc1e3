"""What the fault tests share: waiting for facts in the server, a gate inside transactions, and the check of a history.

    Gate(url, table)     a transaction that touches `table` stands still at a point of our choice, until `open`

The proxy in front of a server is sennit.testing.faultproxy; worker processes are tests/crash/fleet.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit, urlunsplit

import psycopg

from sennit import App
from sennit.store.postgres import PostgresStore
from sennit.store.postgres_ears import PostgresEars
from sennit.testing.faultproxy import FaultProxy
from tests.crash import test_kill as kills
from tests.crash.fleet import WAIT_S, Fleet

_GATE: Final = 77  # the number of the lock


def until(fact: Callable[[], Any], what: str, *, timeout_s: float = WAIT_S) -> None:
    """Wait for something in another process that nobody announces."""
    end_s = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < end_s, f"{what} did not come about"
        time.sleep(0.02)  # sleep: the server tells nobody


def listens(store: PostgresStore) -> bool:
    """Return whether notifications are known to arrive there."""
    assert isinstance(store.ears, PostgresEars)
    return store.ears.is_listening


def proxy_of(url: str) -> FaultProxy:
    """Return a proxy in front of the server of a URL."""
    parts = psycopg.conninfo.conninfo_to_dict(url)
    return FaultProxy(int(parts["port"] or 5432), host=str(parts["host"]))


def through(proxy: FaultProxy, url: str) -> str:
    """Return the URL that leads through a proxy."""
    parts = urlsplit(url)
    netloc = f"{parts.username}@127.0.0.1:{proxy.port}" if parts.username else f"127.0.0.1:{proxy.port}"
    return urlunsplit(parts._replace(netloc=netloc))


class Gate:
    """Holds up transactions that write to a table, from the outside.

    Args:
        when: `write` as soon as they have written, `commit` inside COMMIT, before it is durable.
    """

    def __init__(self, url: str, table: str, *, on: str = "INSERT", when: Literal["write", "commit"]) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._table = table
        deferred = "DEFERRABLE INITIALLY DEFERRED" if when == "commit" else ""
        kind = "CONSTRAINT TRIGGER" if when == "commit" else "TRIGGER"
        self._run(
            "CREATE OR REPLACE FUNCTION test_gate() RETURNS trigger LANGUAGE plpgsql AS"
            f" $f$ BEGIN PERFORM pg_advisory_xact_lock_shared({_GATE}); RETURN NULL; END $f$"
        )
        self._run(f"CREATE {kind} test_gate AFTER {on} ON {table} {deferred} FOR EACH ROW EXECUTE FUNCTION test_gate()")

    def _run(self, sql: str) -> list[Any]:
        cursor = self._connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []

    def shut(self) -> None:
        """Nobody passes from now on."""
        self._run(f"SELECT pg_advisory_lock({_GATE})")

    def wait(self, n: int = 1) -> list[int]:
        """Wait until `n` transactions stand before it; return the pids of their backends."""
        sql = (
            f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = {_GATE} AND classid = 0 AND NOT granted"
        )
        until(lambda: len(self._run(sql)) >= n, f"{n} transactions at the gate")
        return [pid for (pid,) in self._run(sql)]

    def open(self) -> None:
        """Let all pass."""
        self._run("SELECT pg_advisory_unlock_all()")

    def __enter__(self) -> Self:
        self.shut()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()  # with the lock


def check_history(app: App, workers: Fleet) -> None:
    """Nothing lost, nothing accepted twice, no saved step ran again; all tasks have ended."""
    ledger = app.ledger().result()
    assert (ledger.live, ledger.failed, ledger.cancelled, ledger.missing) == (0, 0, 0, 0)
    assert app.store.verify().result() == []
    views = {view.id: view for view in app.store.tasks(limit=1_000_000).result()}
    starts = workers.journal.of("start")
    kills.assert_each_attempt_started_once(starts)
    kills.assert_nothing_started_after_it_was_accepted(starts, {i: view.attempt for i, view in views.items()})
    kills.assert_no_saved_step_ran_again(workers.journal)
