"""A node cut off from PostgreSQL for longer than its lease: it stops, another takes over, and it comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit, urlunsplit

import pytest

from sennit import App, Handle
from sennit.store.postgres import PostgresStore
from sennit.submit.context import current
from sennit.testing.contract_tools import Rig, got, running_loop
from sennit.testing.faultproxy import FaultProxy

WAIT_S = 60.0
LEASE_S = 3.0


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[FaultProxy]:
    parts = urlsplit(postgres_url)
    with FaultProxy(parts.port or 5432, host=parts.hostname or "127.0.0.1") as proxy:
        yield proxy


def through(proxy: FaultProxy, url: str) -> str:
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}" if user else f"127.0.0.1:{proxy.port}"))


def test_a_node_cut_off_past_its_lease_stops_another_takes_over_and_it_goes_on_when_healed(
    postgres_url: str, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    started, stopped = threading.Event(), threading.Event()
    left_us: list[int] = []
    node = App(through(proxy, postgres_url), lease_s=LEASE_S, labels="cut", durability="normal")
    other = App(postgres_url, lease_s=LEASE_S, labels="whole", durability="normal")

    def register(app: App) -> None:
        @app.task(name="hold")
        async def hold() -> str:
            attempt = current()
            assert attempt is not None
            if attempt.task.attempt > 1:
                return app.settings.labels
            started.set()
            try:
                await asyncio.sleep(WAIT_S)
            except asyncio.CancelledError:
                left_us.append(app.store.lease_until_us - app.store.now_us())
                stopped.set()
            return "written too late"

        @app.task(name="where", needs="cut")
        async def where() -> str:
            return app.settings.labels

    register(node)
    register(other)
    with closing(App(postgres_url, durability="normal")) as client, node:
        handle = node.submit_named("hold", {})
        assert started.wait(WAIT_S)
        with other:
            proxy.drop("both")
            assert stopped.wait(WAIT_S)
            assert left_us[0] > 0, "it stopped after its lease had ended"
            seen: Handle[str] = client.handle(handle.id)
            assert seen.result(WAIT_S) == "whole"
            proxy.heal()
            assert other.submit_named("where", {}).result(WAIT_S) == "cut"
            view = seen.view().result()
            (cut,) = [w for w in client.store.workers().result() if w.labels == ("cut",)]
        ledger = client.ledger().result()
        assert client.store.verify().result() == []

    assert (view.attempt, view.failures, view.crashes) == (2, 0, 1)
    assert cut.fenced == 1
    assert (ledger.missing, ledger.live, ledger.refused) == (0, 0, 1)
    assert "cannot renew its lease" in caplog.text
    assert "the store answers again" in caplog.text


def test_an_idle_node_beats_so_that_other_machines_know_that_it_lives(postgres_url: str) -> None:
    app = App(postgres_url, lease_s=0.5, durability="normal")

    @app.task(name="nothing")
    async def nothing() -> None: ...

    tick = threading.Event()
    with app:
        joined_us = app.store.lease_until_us
        for _ in range(int(WAIT_S * 100)):
            if app.store.lease_until_us > joined_us:
                break
            tick.wait(0.01)
        (me,) = app.store.workers().result()

    assert me.expire_us > joined_us


def test_an_idle_node_of_another_machine_whose_lease_has_lapsed_is_not_listed(postgres_url: str) -> None:
    with (
        running_loop() as loop,
        closing(PostgresStore(postgres_url)) as here,
        closing(PostgresStore(postgres_url)) as there,
    ):
        far = Rig(
            there, loop, lease_s=0.2, labels=("gpu",)
        )  # it says that it runs on the host "contract", and never beats
        task_id = far.put(route="gpu", queue="q")
        far.store.unwant()
        tick = threading.Event()
        while here.now_us() <= far.store.lease_until_us:
            tick.wait(0.01)

        assert got(here.workers()) == []
        assert got(here.task(task_id)).reason == "no worker with gpu"
        got(here.cancel([task_id]))
