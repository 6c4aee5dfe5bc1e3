"""Which kind of store each end of a copy is; `store.copying` does the rest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from sennit.model.settings import Settings
from sennit.runtime.stores import is_postgres, need_psycopg, sqlite_path

if TYPE_CHECKING:
    from sennit.store.copying import Copied
    from sennit.store.copying_sides import Side, Use


def move_store(
    source: str, target: str, settings: Settings, *, keep: bool, say: Callable[[str, int], object]
) -> Copied:
    """Copy the store of one URL into the store of another, and shut the first unless `keep`: see `store.copying.copy`.

    Raises:
        SettingsError: a URL is none of a file or server.
        SennitError: as `copy` says.
    """
    from sennit.store.copying import copy  # noqa: PLC0415 - commands that only look do without

    with ExitStack() as stack:
        ours = stack.enter_context(closing(open_side(source, "read" if keep else "write", settings)))
        theirs = stack.enter_context(closing(open_side(target, "make", settings)))
        return copy(ours, theirs, keep=keep, say=say)


def open_side(url: str, use: Use, settings: Settings) -> Side:
    """Open one end.

    Raises:
        SettingsError: the URL is none of a file or server.
        StoreError: it cannot be opened.
    """
    if is_postgres(url):
        need_psycopg()
        from sennit.store.copying_postgres import PostgresSide  # noqa: PLC0415 - a store that is not used is not loaded

        return PostgresSide(url, use, lock_timeout_s=settings.lock_timeout_s)
    path = sqlite_path(url)
    from sennit.store.copying_sides import SqliteSide  # noqa: PLC0415 - a store that is not used is not loaded

    return SqliteSide(path, use, lock_timeout_s=settings.lock_timeout_s)


def back_up_server(url: str, file: Path, settings: Settings, *, say: Callable[[str, int], object]) -> Copied:
    """Copy the store of a server into a new SQLite file, of one moment and beside those who work.

    It is written as `FILE.partial` and gets its name when it is whole and on the disk.

    Raises:
        StoreUnavailable: the file exists, or cannot be made.
        SennitError: as `store.copying.copy` says.
    """
    from sennit.store.backup import make_lone, new_file  # noqa: PLC0415 - commands that only look do without

    with new_file(file) as partial:
        done = move_store(url, f"sqlite:///{partial}", settings, keep=True, say=say)
        make_lone(partial)
    return done
