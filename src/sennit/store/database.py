"""What the moves need of a database connection: SQLite's own has it, PostgreSQL's is made to (`wire`).

    moves ─► execute(statement, parameters) ─► Rows          the same calls, whatever the dialect

A statement is written once, in SQLite's dialect; where PostgreSQL wants other words it brings them along (`sql`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from sennit.errors import StoreUnavailable

Parameters = Sequence[Any] | Mapping[str, Any]


class Rows(Protocol):
    """What a statement has brought."""

    @property
    def rowcount(self) -> int:
        """How many rows it has changed."""

    def fetchone(self) -> Any:
        """Return the next row, or None."""

    def fetchall(self) -> list[Any]:
        """Return the rows that are left."""

    def __iter__(self) -> Iterator[Any]:
        """Go through the rows that are left."""


class Connection(Protocol):
    """One connection, used by one OS thread at a time. Transactions are written out."""

    @property
    def in_transaction(self) -> bool:
        """True from BEGIN to COMMIT or ROLLBACK."""

    def execute(self, sql: str, parameters: Parameters = ..., /) -> Rows:
        """Run one statement."""

    def executemany(self, sql: str, parameters: Iterable[Parameters], /) -> Rows:
        """Run one statement with each of `parameters`; `rowcount` is that of all of them."""

    def close(self) -> None:
        """Give it up; a transaction that is open is rolled back."""


class Backend(Protocol):
    """What differs between databases, beside the words.

    Attributes:
        begin: begins a transaction that writes.
        begin_read: begins one that reads, and sees one moment.
    """

    begin: str
    begin_read: str

    def connect(self, *, read_only: bool = False) -> Connection:
        """Open one more connection.

        Raises:
            StoreError: it cannot be opened.
        """

    def closed(self) -> StoreUnavailable:
        """Return the error of a call that came after `close`."""

    def explain(self, error: BaseException) -> BaseException:
        """Return the store's own error for one of the driver; any other as it is."""

    def is_passing(self, error: BaseException) -> bool:
        """True when the whole transaction may work if it is run once more."""

    def roll_back(self, connection: Connection) -> None:
        """End a transaction that failed, if it is still open. What failed before is the news."""

    def may_try_again(self, connection: Connection, error: BaseException, tries: int) -> bool:
        """True when the transaction is to be run again, after `tries`; waits for as long as that makes sense."""
