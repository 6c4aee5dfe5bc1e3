"""Following what is logged and said of agents, on PostgreSQL: who follows has a row, and is rung after the commit.

    sennit_meta `follow:ADDRESS` = until when        log, note ─► commit ─► ring ─► the follower looks, and sleeps again

Nobody follows, the usual case: writing lines costs one look at a table of ten rows, and a note of an agent sends that look
along with itself, without a round trip more. The row is a lease, so that a follower that was killed is not rung for ever.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.operations import Beside
from sennit.store.postgres_ears import PostgresEars

if TYPE_CHECKING:
    from sennit.store.ears import Ear
    from sennit.store.postgres import PostgresStore

LEASE_S: Final = 60.0
NEWS: Final = 255  # any hint: a ring without one wakes nobody
_WRITE: Final = """
INSERT INTO sennit_meta (name, value) VALUES ('follow:' || ?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
_FORGET: Final = "DELETE FROM sennit_meta WHERE name = 'follow:' || ? OR (starts_with(name, 'follow:') AND value < ?)"
FOLLOWERS: Final = (
    "SELECT substr(name, 8) FROM sennit_meta WHERE starts_with(name, 'follow:') AND value >= sennit_time()"
)


def followers(connection: Connection) -> list[str]:
    """Return the addresses of those who follow, in a transaction that writes."""
    return [address for (address,) in connection.execute(FOLLOWERS).fetchall()]


class Follower:
    """Wakes when somebody has logged, or said how an agent is, from the moment of `with` on.

    Args:
        ears: of its own.
    """

    def __init__(self, store: PostgresStore, ears: PostgresEars) -> None:
        self._store = store
        self._ears = ears
        self._rung = threading.Event()
        self._ear: Ear | None = None

    def __enter__(self) -> Self:
        self._store.live.mkdir(exist_ok=True)
        self._ear = self._ears.listen("follow", lambda _: self.wake(), lambda: False)
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ear is None:
            return
        address = self._ear.address

        def forget(connection: Connection, effects: Effects) -> None:
            connection.execute(_FORGET, (address, effects.now_us))

        self._store.put(Beside(forget))  # `close` waits for it
        self._ear.close()
        self._ears.close()
        self._ear = None

    def wake(self) -> None:
        """End the wait; from any OS thread."""
        self._rung.set()

    def wait(self) -> None:
        """Sleep until somebody has logged, or said how an agent is, or `wake` was called, since the last call."""
        while not self._rung.wait(LEASE_S / 2):
            self._write()
        self._rung.clear()

    def _write(self) -> None:
        """Be known for one more lease."""
        assert self._ear is not None  # noqa: S101 - inside `with`
        address = self._ear.address

        def write(connection: Connection, effects: Effects) -> None:
            connection.execute(_WRITE, (address, effects.now_us + round(LEASE_S * 1e6)))

        self._store.put(Beside(write)).result()
