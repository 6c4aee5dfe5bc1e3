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
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import redis as redis_driver
from hypothesis import Phase, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from sennit.sync import lockorder
from sennit.testing.servers import PostgresServer, RedisServer
from tests.crash.nursery import Nursery
from tests.loops import all_closed
from tests.servers import Databases, GivenPostgres, Postgres, postgres_programs, redis_program

# No deadline: on a busy machine it fails examples that are only slow.
# Without the phase that explains a failure: on Python 3.11 it traces every line, and pytest's time-out hides the failure.
PHASES = tuple(phase for phase in Phase if phase is not Phase.explain)
settings.register_profile("ci", derandomize=True, deadline=None, phases=PHASES)
settings.register_profile("explore", max_examples=2000, deadline=None)
# Values taken from whatever modules are loaded would make the examples depend on which tests are collected with them.
providers._get_local_constants = Constants
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


TESTS = Path(__file__).parent


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Keep the bytecode of what is collected, whatever the environment says, and begin at a place of this worker's own.

    Rewriting the asserts of a fresh clone and compiling it takes 16 s of a core. Each worker collects every file; where
    one comes to the part of another, that one has written it already.
    """
    config = session.config
    if hasattr(config, "workerinput") and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        config.args = beginning_at(int(config.workerinput["workerid"][2:]), config.workerinput["workercount"])
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    try:
        return (yield)
    finally:
        sys.dont_write_bytecode = before


def beginning_at(part: int, parts: int) -> list[str]:
    """Return the folders of tests, in a ring from where `part` of `parts` equal shares of their text begins."""
    bytes_of: dict[str, int] = {}
    for path in sorted(TESTS.glob("*/**/*.py")):
        folder = path.relative_to(TESTS).parts[0]
        bytes_of[folder] = bytes_of.get(folder, 0) + path.stat().st_size
    folders, before, first = [str(TESTS / name) for name in bytes_of], 0, 0
    for first, size in enumerate(bytes_of.values()):  # noqa: B007 - where it stops is what is asked
        if before + size / 2 >= sum(bytes_of.values()) * part / parts:
            break
        before += size
    return folders[first:] + folders[:first]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Undo the order of `beginning_at`: workers must agree on one, which pytest-randomly may then shuffle."""
    items.sort(key=lambda item: item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else "")
    yield


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
