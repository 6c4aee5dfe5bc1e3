"""Processes that only wait leave each other alone: what one hears it does not tell back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sennit.store.postgres import PostgresStore
from sennit.store.row_store import RowStore
from sennit.store.sqlite import SqliteStore
from sennit.store.wakeup import Hint
from sennit.testing.contract_tools import got


@pytest.fixture(params=["sqlite", "postgres"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[RowStore, RowStore]]:
    make: Callable[[], RowStore]
    if request.param == "sqlite":
        make = lambda: SqliteStore(tmp_path / "tasks.db", durability="normal")  # noqa: E731 - as short as the other
    else:
        url = request.getfixturevalue("postgres_url")
        make = lambda: PostgresStore(url, durability="normal")  # noqa: E731
    with ExitStack() as stack:
        stores = make(), make()
        for store in stores:
            stack.callback(store.close)
        yield stores


def test_two_clients_that_wait_come_to_rest(two: tuple[RowStore, RowStore]) -> None:
    revision = got(two[0].watch_inbox(-1))
    waiting = [store.watch_inbox(revision) for store in two]  # each is one that others ring now
    for store in two:
        got(store.put(lambda _connection, effects: effects.due(effects.now_us)))
        store.ears.ring([bell.bell for bell in got(store.workers())], Hint.TIMER)

    time.sleep(0.3)  # sleep: nothing tells that nothing more will come; a storm makes hundreds of commits in this time
    before = [store._writer.commits for store in two]
    time.sleep(0.5)  # sleep: see above

    assert max(store._writer.commits - n for store, n in zip(two, before, strict=True)) < 5
    assert not any(ack.done for ack in waiting)
