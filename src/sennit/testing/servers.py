"""PostgreSQL and Redis for tests, benchmarks and chaos: real servers in a temporary folder, ours to kill.

    with PostgresServer() as postgres:
        psycopg.connect(postgres.create_database("first"))
        postgres.kill()                 # SIGKILL to all its processes
        postgres.start()                # recovers, same port

Their life is in `server_process`. On an idle machine PostgreSQL starts in about 0.2 s
(0.6 s more the first time in an environment), Redis in 0.05 s.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from sennit.errors import SettingsError, StoreUnavailable
from sennit.testing.postgres_folder import OURS, made_once
from sennit.testing.postgres_query import query
from sennit.testing.server_process import Server
from sennit.testing.server_programs import installed_postgres, installed_redis

__all__ = ["PostgresServer", "RedisServer", "find_postgres", "find_redis"]

NONE: Final[Mapping[str, str]] = MappingProxyType({})
SAFE_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class PostgresServer(Server):
    """A PostgreSQL of our own.

    Args:
        fsync: False loses committed transactions when the machine crashes (not when we kill the server), and is what a
            test wants that looks at answers; True is for the benchmarks and for figures.
        connections_max: `max_connections`.
        settings: any others, by their names in postgresql.conf.
        programs: the folder with `initdb` and `postgres`; found by itself otherwise.

    Raises:
        StoreUnavailable: PostgreSQL is not installed.
    """

    name = "postgres"
    user = "sennit"
    quit_signal = signal.SIGQUIT  # "immediate": no checkpoint, recovery at the next start
    stop_signal = signal.SIGINT  # "fast": sessions are ended, then a checkpoint
    ready_text = "database system is ready to accept connections"
    bind_text = "could not bind"

    def __init__(
        self,
        *,
        fsync: bool = False,
        connections_max: int = 100,
        settings: Mapping[str, str] = NONE,
        programs: Path | None = None,
    ) -> None:
        self.programs = programs or find_postgres()
        super().__init__(in_memory=not fsync)
        self.settings = {
            "max_connections": str(connections_max),
            "shared_buffers": "32MB",
            "huge_pages": "off",
            "dynamic_shared_memory_type": "mmap",  # in its folder: a killed server leaves nothing in /dev/shm
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "lc_messages": "C",  # `ready_text` is English
            "log_timezone": "UTC",
            "timezone": "UTC",
        }
        if not fsync:
            self.settings |= {
                "fsync": "off",
                "full_page_writes": "off",
            }  # commits still reach the kernel: SIGKILL loses none
        self.settings |= settings

    def prepare_argv(self) -> list[str]:
        """Return the command line that makes the data folder: a copy of one made before takes a tenth of initdb's time."""
        data = self.folder / "data"
        argv = [str(self.programs / "initdb"), "-U", self.user, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        if self.settings.get("fsync") == "off":
            argv.append("--wal-segsize=1")  # MiB; 16 zeroed ones take as long as all the rest
        made = made_once(argv, self.account)
        return ["cp", "-Rp", str(made), str(data)] if made else [*argv, "-D", str(data)]

    def run_argv(self) -> list[str]:
        """Return the server's command line."""
        settings = [f"--{name}={value}" for name, value in self.settings.items()]
        return [str(self.programs / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *settings]

    # ---------------------------------------------------------------- what clients use

    @cached_property
    def version(self) -> int:
        """Its major version; known from its files, once it has been started."""
        return int((self.folder / "data" / "PG_VERSION").read_text(encoding="ascii"))

    @property
    def url(self) -> str:
        """Of the database `postgres`, by TCP."""
        return self.url_of("postgres")

    def url_of(self, database: str, *, port: int = 0) -> str:
        """Return the URL of a database by TCP; `port` is that of a proxy in front of the server."""
        return f"postgresql://{self.user}@127.0.0.1:{port or self.port}/{database}"

    def unix_url_of(self, database: str) -> str:
        """Return the URL of a database by the unix socket."""
        return f"postgresql://{self.user}@/{database}?host={quote(str(self.folder), safe='')}&port={self.port}"

    def query(self, sql: str, *, database: str = "postgres") -> list[tuple[str | None, ...]]:
        """Run `sql` as superuser in a connection of its own; return the rows, values as text.

        Raises:
            StoreUnavailable: the server does not answer, or refused.
        """
        return query(self.folder / f".s.PGSQL.{self.port}", sql, user=self.user, database=database)

    def create_database(self, name: str, *, template: str = "template1") -> str:
        """Make a database and return its URL.

        Raises:
            SettingsError: the name needs quoting.
            StoreUnavailable: it exists, `template` is in use, or the server does not answer.
        """
        # Without fsync a plain copy of the files takes half as long as logging every page (26 and 55 ms for 45 tables).
        plain_copy = self.settings.get("fsync") == "off" and self.version >= 15
        strategy = " STRATEGY file_copy" if plain_copy else ""
        self.query(f"CREATE DATABASE {_safe(name)} TEMPLATE {_safe(template)}{strategy}")
        return self.url_of(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, also while it is in use. Nothing happens if there is none."""
        self.query(f"DROP DATABASE IF EXISTS {_safe(name)} WITH (FORCE)")


class RedisServer(Server):
    """A Redis of our own, without a password.

    Args:
        durable: every write is on the disk before its answer; False keeps nothing over a stop.
        settings: any others, by their names in redis.conf.
        program: redis-server (or one that speaks like it); found by itself otherwise.

    Raises:
        StoreUnavailable: Redis is not installed.
    """

    name = "redis"
    quit_signal = signal.SIGKILL
    stop_signal = signal.SIGTERM
    ready_text = "eady to accept connections"  # "Ready …" since 7, "ready …" before
    bind_text = "Address already in use"

    def __init__(
        self, *, durable: bool = False, settings: Mapping[str, str] = NONE, program: Path | None = None
    ) -> None:
        self.program = program or find_redis()
        super().__init__(in_memory=not durable)
        self.settings = {
            "bind": "127.0.0.1",
            "unixsocket": str(self.folder / "redis.sock"),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes" if durable else "no",
            "appendfsync": "always" if durable else "no",
            **settings,
        }

    def prepare_argv(self) -> list[str]:
        """Return nothing: Redis needs no preparation."""
        return []

    def run_argv(self) -> list[str]:
        """Return the server's command line."""
        settings = [part for name, value in self.settings.items() for part in (f"--{name}", value)]
        return [str(self.program), "--port", str(self.port), *settings]

    @property
    def url(self) -> str:
        """Of database 0, by TCP."""
        return self.url_of()

    def url_of(self, database: int = 0, *, port: int = 0) -> str:
        """Return the URL of a database by TCP; `port` is that of a proxy in front of the server."""
        return f"redis://127.0.0.1:{port or self.port}/{database}"

    @property
    def unix_url(self) -> str:
        """Of database 0, by the unix socket."""
        return f"unix://{self.folder / 'redis.sock'}"


def find_postgres() -> Path:
    """Return the folder with PostgreSQL's server programs.

    Raises:
        StoreUnavailable: there is none.
    """
    if found := installed_postgres(OURS):
        return found
    raise StoreUnavailable(
        "PostgreSQL is not installed",
        why="neither PATH nor the usual places have initdb and postgres",
        fix="apt install postgresql, or brew install postgresql; in a checkout `python3 dev.py test` gets it",
    )


def find_redis() -> Path:
    """Return the program redis-server (or valkey-server).

    Raises:
        StoreUnavailable: there is none.
    """
    if found := installed_redis(OURS):
        return found
    raise StoreUnavailable(
        "Redis is not installed",
        why="neither PATH nor the usual places have redis-server",
        fix="apt install redis-server, or brew install redis; in a checkout `python3 dev.py test` gets it",
    )


def _safe(name: str) -> str:
    if not SAFE_NAME.fullmatch(name):
        raise SettingsError(
            f"{name!r} cannot be the name of a database here",
            why="it would need quoting",
            fix="use lower-case letters, digits and underscores, 63 at most",
        )
    return name
