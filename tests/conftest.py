"""What all tests share: the servers, and that property tests draw the same examples everywhere.

    postgres            a server for the whole run: make your own databases in it
    postgres_url        a database with the store's schema and no tasks, 3 ms; the same one in every test
    fresh_database      one more of those that nobody else has used, 30 ms
    start_postgres      a server for this test, to kill, freeze and restart
    redis, start_redis  the same; `redis` is emptied before each test
    nursery             forks worker processes that are to be killed

Which servers these are: tests/servers.py. A run that explores: `HYPOTHESIS_PROFILE=explore python3 dev.py test -k property`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
import redis as redis_driver
from hypothesis import settings

from sennit.sync import lockorder
from sennit.testing.servers import PostgresServer, RedisServer
from tests.crash.nursery import Nursery
from tests.loops import all_closed
from tests.servers import Databases, GivenPostgres, Postgres, postgres_programs, redis_program

# No deadline: on a busy machine it fails examples that are only slow.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test closes the event loops that it makes."""
    with all_closed(others=request.node.get_closest_marker("leaves_loops") is not None):
        yield


@pytest.fixture(autouse=True)
def _lock_order() -> Iterator[None]:
    """Locks made in a test are checked for their order; each test has orders of its own."""
    with lockorder.checking():
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for the whole run, without fsync."""
    if url := os.environ.get("SENNIT_TEST_POSTGRES"):
        yield GivenPostgres(url)
        return
    with PostgresServer(programs=postgres_programs()) as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres: Postgres) -> Iterator[Databases]:
    """Databases with the store's schema."""
    made = Databases(postgres, make_schema)
    yield made
    made.close()


def make_schema(url: str) -> None:
    from sennit.store.postgres import PostgresStore

    PostgresStore(url).close()


@pytest.fixture
def postgres_url(databases: Databases) -> str:
    """The URL of a database as it is after the store was opened first."""
    return databases.recycled()


@pytest.fixture
def fresh_database(databases: Databases) -> Iterator[Callable[..., str]]:
    """Makes such databases that no other test uses, and returns their URLs; `template="template1"`: without schema."""
    yield databases.fresh
    databases.drop_fresh()


@pytest.fixture
def start_postgres() -> Iterator[Callable[..., PostgresServer]]:
    """Starts PostgreSQL servers with `fsync`, `connections_max` and settings by name; they end with the test."""
    with ExitStack() as stack:

        def start(*, fsync: bool = False, connections_max: int = 100, **settings: str) -> PostgresServer:
            programs = postgres_programs()
            server = PostgresServer(fsync=fsync, connections_max=connections_max, settings=settings, programs=programs)
            return stack.enter_context(server)

        yield start


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis for the whole run; use `redis` unless it may hold other tests' keys."""
    if url := os.environ.get("SENNIT_TEST_REDIS"):
        yield url
        return
    with RedisServer(program=redis_program()) as server:
        yield server.url


@pytest.fixture
def redis(redis_url: str) -> str:
    """The URL of an empty Redis database."""
    with redis_driver.Redis.from_url(redis_url) as connection:
        connection.flushdb()
    return redis_url


@pytest.fixture
def start_redis() -> Iterator[Callable[..., RedisServer]]:
    """Starts Redis servers with `durable` and settings by name; they end with the test."""
    with ExitStack() as stack:

        def start(*, durable: bool = False, **settings: str) -> RedisServer:
            return stack.enter_context(RedisServer(durable=durable, settings=settings, program=redis_program()))

        yield start


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Starts processes that are there to be killed in a few milliseconds."""
    with closing(Nursery()) as started:
        yield started
