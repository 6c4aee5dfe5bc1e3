"""Ears at PostgreSQL: neighbours by sockets, others by NOTIFY; a connection that is half dead deafens nobody."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from sennit.store.ears import Ear
from sennit.store.postgres_ears import PostgresEars
from sennit.store.postgres_server import PostgresServer
from sennit.store.wakeup import Hint
from sennit.testing import servers

WAIT_S = 30.0


class Heard:
    """What one ear was rung for."""

    def __init__(self) -> None:
        self.hints = 0
        self._news = threading.Condition()

    def __call__(self, hints: int) -> None:
        with self._news:
            self.hints |= hints
            self._news.notify_all()

    def wait(self, hints: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.hints & hints == hints, WAIT_S), f"heard only {self.hints}"
            self.hints = 0


class House:
    """Ears of one process."""

    def __init__(self, url: str, folder: Path, *, sockets: bool) -> None:
        folder.mkdir(exist_ok=True)
        self.ears = PostgresEars(PostgresServer(url), folder, sockets=sockets, probe_s=0.3, answer_s=1.0)
        self.heard = Heard()
        self.ear: Ear = self.ears.listen("x", self.heard, lambda: False)
        self.heard.wait(255)  # it listens

    def close(self) -> None:
        self.ear.close()
        self.ears.close()


def until_it_listens(house: House) -> None:
    """It looks at everything every second until it does, and then once more."""
    for _ in range(10):
        house.heard.wait(255)
        if house.ears.is_listening:
            return
    raise AssertionError("it does not listen again")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    with ExitStack() as stack:

        def make(url: str, folder: str = "a", *, sockets: bool = True) -> House:
            made = House(url, tmp_path / folder, sockets=sockets)
            stack.callback(made.close)
            return made

        yield make


@pytest.mark.parametrize(("folder", "sockets"), [("a", True), ("b", True), ("a", False)])
def test_a_ring_reaches_neighbours_and_others(
    postgres_url: str, house: Callable[..., House], folder: str, *, sockets: bool
) -> None:
    here, there = house(postgres_url, "a", sockets=sockets), house(postgres_url, folder, sockets=sockets)

    here.ears.ring([there.ear.address], Hint.DONE)

    there.heard.wait(Hint.DONE)


def test_what_was_rung_for_at_the_same_time_adds_up(postgres_url: str, house: Callable[..., House]) -> None:
    here, there = house(postgres_url, sockets=False), house(postgres_url, sockets=False)

    for hint in (Hint.DONE, Hint.READY, Hint.STOP):
        here.ears.ring([there.ear.address], hint)

    there.heard.wait(Hint.DONE | Hint.READY | Hint.STOP)


def test_a_listening_connection_that_is_half_dead_is_noticed_and_deafens_nobody(
    start_postgres: Callable[..., servers.PostgresServer], house: Callable[..., House]
) -> None:
    url = start_postgres().create_database("half")
    one, two = house(url), house(url)
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_notify%' AND pid <> pg_backend_pid()"
        )
        backends = [pid for (pid,) in rows.fetchall()]
    assert backends
    for pid in backends:
        os.kill(pid, signal.SIGSTOP)
    try:
        one.ears.ring([two.ear.address], Hint.DONE)
        two.heard.wait(Hint.DONE)  # a neighbour is heard all the same
        until_it_listens(two)
    finally:
        for pid in backends:
            os.kill(pid, signal.SIGCONT)


def test_while_nothing_arrives_it_looks_by_itself_and_says_so(
    start_postgres: Callable[..., servers.PostgresServer], house: Callable[..., House]
) -> None:
    server = start_postgres()
    here = house(server.create_database("down"))

    server.kill()
    here.heard.wait(255)
    assert not here.ears.is_listening

    server.restart()
    until_it_listens(here)
