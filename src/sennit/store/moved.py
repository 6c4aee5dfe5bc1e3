"""A store that is shut: what was in it has moved to another URL, or a copy into it is not finished.

    sennit_meta `closed` ─► whoever opens it is refused      triggers on every table ─► whoever has it open is refused too

Two stores that go on from the same tasks do them twice. The triggers cost nothing until they are there, and they also stop
a process that was frozen or cut off while the store moved, and one whose sennit is too old to know of moves.
`copying` shuts stores and opens them again; here is what it writes, and the error that follows from it.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from sennit.errors import StoreMoved
from sennit.store.database import Connection
from sennit.store.sql import Statement

NAME: Final = "closed"
SQLSTATE: Final = "SN002"  # what the trigger raises on PostgreSQL
_SAID: Final = "this store is closed: "
_CLOSED: Final = Statement(
    "SELECT value FROM sennit_meta WHERE name = 'closed'", "SELECT data FROM sennit_meta WHERE name = 'closed'"
)


class Closing(msgspec.Struct, kw_only=True, frozen=True):
    """Why a store is shut.

    Attributes:
        why: `moved`: its tasks are elsewhere now. `arriving`: a copy into it is not finished.
        other: the URL of the other store, without a password.
        copy: what tells one copy from others; both stores have it.
        at_us: since when, µs since the epoch.
    """

    why: Literal["moved", "arriving"]
    other: str
    copy: str
    at_us: int

    def encode(self) -> bytes:
        """Return it as it stands in the row."""
        return msgspec.json.encode(self)

    def said(self) -> str:
        """Return it as the triggers say it."""
        return _SAID + self.encode().decode()

    def error(self, name: str) -> StoreMoved:
        """Return the error of whoever uses this store."""
        if self.why == "moved":
            return StoreMoved(
                f"{name} has moved to {self.other}",
                why="its tasks go on there; done here as well, they would be done twice",
                fix=f"use --db {self.other} (or SENNIT_DB); to begin anew from here: sennit db copy … --keep",
            )
        return StoreMoved(
            f"the copy of {self.other} into {name} is not finished",
            why="it runs now, or was interrupted; nothing is lost where it comes from",
            fix=f"run it again: sennit db copy {self.other} {name}",
        )


def closing_of(connection: Connection) -> Closing | None:
    """Return why a store is shut, or None. Its tables must be there."""
    row = connection.execute(_CLOSED).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=Closing)


def refuse_closed(connection: Connection, name: str) -> None:
    """Raise StoreMoved when a store is shut.

    Args:
        name: of the store, for people.
    """
    closing = closing_of(connection)
    if closing is not None:
        raise closing.error(name)


def said_closed(text: str, name: str) -> StoreMoved | None:
    """Return the error for what a database has said, if it was one of our triggers."""
    _, said, rest = text.partition(_SAID)
    return msgspec.json.decode(rest, type=Closing).error(name) if said else None
