"""Which connections of a caller tasks can be handed in through (`PostgresStore.submit_in`).

    async ─► no      pipeline ─► no      no transaction ─► no      REPEATABLE READ, SERIALIZABLE ─► no      else ─► yes

The moves look at rows and then decide. In a snapshot that was taken before they got the pen they would see a parent as open
that has ended since, and the task would wait for it for ever.
"""

from __future__ import annotations

import psycopg
from psycopg import pq

from sennit.errors import UsageError


def refuse_unfit(connection: object) -> None:
    """Look whether tasks can be handed in through a connection.

    Raises:
        UsageError: they cannot.
    """
    if not isinstance(connection, psycopg.Connection):
        raise UsageError(
            f"submit_in takes a psycopg.Connection, and this is a {type(connection).__name__}",
            fix="use a synchronous connection for this transaction (in asyncio: inside asyncio.to_thread)",
        )
    if connection.pgconn.pipeline_status != pq.PipelineStatus.OFF:
        raise UsageError(
            "this connection is in pipeline mode",
            why="submit_in needs the answers to what it asks",
            fix="call it outside `with connection.pipeline():`",
        )
    if connection.autocommit and connection.info.transaction_status == pq.TransactionStatus.IDLE:
        raise UsageError(
            "this connection is in no transaction",
            why="in autocommit each statement is a transaction, and a task would be stored in pieces",
            fix="call it inside `with connection.transaction():`",
        )
    with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        row = cursor.execute("SHOW transaction_isolation").fetchone()
    if row is None or row[0] != "read committed":
        raise UsageError(
            f"submit_in needs a READ COMMITTED transaction, and this is {'' if row is None else row[0].upper()}",
            why="it shows the rows as they were when it began: a task could wait for a parent that has ended since",
            fix="leave `isolation_level` of this connection as it is",
        )
