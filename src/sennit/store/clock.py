"""The clock of a database file: one offset per boot, so that setting the wall clock moves no lease and no retry.

    now_us = offset_us (in the file, by boot id) + uptime of the machine

Whoever opens the file first after a boot fixes the offset for all processes, from the wall clock of that moment, but
never so that time would go back: a machine that comes up with a clock behind goes on from the newest time in the file.
"""

from __future__ import annotations

from typing import Final

from sennit.store.database import Connection
from sennit.sync.clock import NowUs, boot_id, steady_clock, uptime_us, wall_us

_OF_BOOT: Final = "SELECT value FROM sennit_meta WHERE name = 'clock:' || ?"
_FORGET: Final = "DELETE FROM sennit_meta WHERE name LIKE 'clock:%'"
_FIX: Final = "INSERT INTO sennit_meta (name, value) VALUES ('clock:' || ?, ?)"
# By the index on done_us and by the end of the primary key; ids of other processes' blocks may be a little newer.
_NEWEST: Final = """
SELECT max(at_us) FROM (
  SELECT max(done_us) AS at_us FROM sennit_task WHERE done_us IS NOT NULL
  UNION ALL SELECT max(created_us) FROM (SELECT created_us FROM sennit_task ORDER BY id DESC LIMIT 4096)
  UNION ALL SELECT max(started_us) FROM sennit_running)
"""


def file_clock(connection: Connection) -> NowUs:
    """Return the clock that all processes of this boot share through the file."""
    boot = boot_id()
    if not boot:
        return wall_us
    return steady_clock(offset_us(connection, boot=boot, wall_now_us=wall_us(), uptime_now_us=uptime_us()))


def offset_us(connection: Connection, *, boot: str, wall_now_us: int, uptime_now_us: int) -> int:
    """Return what to add to the uptime of `boot`, in µs; fixes it if this is the first look since that boot.

    Args:
        boot: what tells this boot of the machine from others.
        wall_now_us, uptime_now_us: both clocks, read at the same moment.
    """
    row = connection.execute(_OF_BOOT, (boot,)).fetchone()
    if row is None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            row = connection.execute(_OF_BOOT, (boot,)).fetchone()  # again, under the lock: another may have been first
            if row is None:
                newest_us = connection.execute(_NEWEST).fetchone()[0] or 0
                row = (max(wall_now_us, newest_us) - uptime_now_us,)
                connection.execute(_FORGET)
                connection.execute(_FIX, (boot, *row))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    fixed_us: int = row[0]
    return fixed_us
