"""Notifications that do not arrive: noticed by a probe, looked every second instead, healed by itself; nothing is lost.

    store ──── writes, reads ────────────► server
          ──── LISTEN, NOTIFY ── proxy ──► server       only this connection is half-dead

And where they are all there is: processes that share no sockets, as on different hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from sennit.model.task import Succeeded
from sennit.store.postgres import PostgresStore
from sennit.testing.contract_tools import Rig, got, running_loop
from sennit.testing.faultproxy import FaultProxy
from tests.crash.fleet import client, fleet, values
from tests.faults.tools import check_history, listens, proxy_of, through, until

PROBE_S, ANSWER_S = 0.3, 0.3


class Pair:
    """A worker whose notifications come through the proxy, and a client; they have no sockets in common."""

    def __init__(self, url: str, proxy: FaultProxy, stack: ExitStack) -> None:
        self.proxy = proxy
        loop = stack.enter_context(running_loop())
        listen_url = through(proxy, url)
        self.store = stack.enter_context(
            closing(PostgresStore(url, sockets=False, listen_url=listen_url, probe_s=PROBE_S, answer_s=ANSWER_S))
        )
        self.other = stack.enter_context(closing(PostgresStore(url, sockets=False)))
        self.rig, self.others = Rig(self.store, loop), Rig(self.other, loop)

    @property
    def hears(self) -> bool:
        return listens(self.store)

    def exchange(self) -> None:
        """Hand in a task there; it starts here, and its result is told there."""
        task_id = self.others.put()
        watched = self.other.watch(task_id)
        self.store.want("q", 1)
        self.rig.heard.wait_for(lambda: self.rig.heard.claimed[-1:] != [] and self.rig.heard.claimed[-1].id == task_id)
        assert self.rig.finish(Succeeded(self.rig.heard.claimed[-1].claim, b"7")) == [True]
        assert got(watched).result == b"7"


@pytest.fixture
def pair(postgres_url: str) -> Iterator[Pair]:
    with ExitStack() as stack:
        proxy = stack.enter_context(proxy_of(postgres_url))
        yield Pair(postgres_url, proxy, stack)


def test_a_half_dead_connection_is_noticed_and_looked_past_and_replaced(pair: Pair) -> None:
    pair.exchange()
    assert pair.hears

    pair.proxy.drop("both")
    until(lambda: not pair.hears, "a probe that finds out")
    pair.store.want("q", 1)  # stands, and nobody can ring for it
    task_id = pair.others.put()
    pair.rig.heard.wait_for(lambda: [t.id for t in pair.rig.heard.claimed][-1:] == [task_id])
    assert not pair.hears
    pair.rig.finish(Succeeded(pair.rig.heard.claimed[-1].claim, b"7"))

    pair.proxy.heal()
    until(lambda: pair.hears, "the news that notifications arrive again")
    pair.exchange()
    pair.rig.check()


def test_a_connection_that_swallows_only_what_comes_is_noticed(pair: Pair) -> None:
    pair.proxy.drop("to_client")

    until(lambda: not pair.hears, "a probe that finds out")

    pair.exchange()
    pair.proxy.reset()
    pair.proxy.heal()
    until(lambda: pair.hears, "another connection")
    pair.exchange()


def test_a_stop_reaches_the_process_that_runs_it_by_notification_alone(pair: Pair) -> None:
    task = pair.rig.start()

    assert got(pair.other.cancel([task.id])) == [True]

    pair.rig.heard.wait_for(lambda: task.claim in pair.rig.heard.stopped)


@pytest.mark.parametrize("deaf", [False, True], ids=["heard", "deaf"])
def test_a_fleet_goes_on_while_no_notification_arrives(fresh_database: Callable[..., str], *, deaf: bool) -> None:
    url = fresh_database()
    with proxy_of(url) as proxy, fleet(url, SENNIT_LISTEN_URL=through(proxy, url)) as workers:
        workers.start_ready(2)
        at = client(url)
        assert values(at.leaf.map(range(4)))
        if deaf:
            proxy.drop("both")
        joined = [at.join.submit(at.leaf.map(range(n, n + 3))) for n in range(3)]

        assert values(joined) == [sum(20 * i + 3 for i in range(n, n + 3)) for n in range(3)]
        check_history(at.app, workers)
        at.app.close()
