"""Tries to open a database that its user may not write. Usage: read_only.py file | folder | both.

Prints the code of the error, which of its parts are there, and whether the file is as it was.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from sennit.errors import StoreError
from sennit.store.sqlite import SqliteStore

NOBODY = 65_534


def main(read_only: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "tasks.db"
        with closing(SqliteStore(path)):
            pass
        before = path.read_bytes()
        path.chmod(0o444 if read_only in {"file", "both"} else 0o666)
        folder.chmod(0o555 if read_only in {"folder", "both"} else 0o777)
        # What the owner left beside the database would help nobody else.
        for beside in folder.glob("tasks.db-*"):
            beside.chmod(0o777)
        parts = try_to_open(path)
        state = "unchanged" if path.read_bytes() == before else "changed"
        sys.stdout.write("\n".join([*parts, state]))
        folder.chmod(0o700)


def try_to_open(path: Path) -> list[str]:
    """Open as somebody who does not own the file; be root again afterwards, to clean up."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(NOBODY)
    try:
        SqliteStore(path)
    except StoreError as error:
        return [error.code, *(part for part in ("what", "why", "fix") if getattr(error, part))]
    finally:
        if was_root:
            os.seteuid(0)
    return ["opened"]


if __name__ == "__main__":
    main(sys.argv[1])
