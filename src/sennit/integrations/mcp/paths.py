"""Reserved files and folders of a claim: those of `execute.path_locks`, which end with the claim in whatever way it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sennit.errors import SennitError, UsageError
from sennit.execute.path_locks import PathLocks, Reservation
from sennit.execute.path_names import PathNames
from sennit.integrations.mcp.clients import Held
from sennit.store.leases import Locks

_log = logging.getLogger("sennit.mcp")


class PathClaims:
    """All methods belong to one event loop.

    Args:
        root: what relative paths are relative to; none may lead out of it.

    Raises:
        SettingsError: it is no folder.
    """

    def __init__(self, locks: Locks, root: Path) -> None:
        self._names = PathNames(root)
        self._locks = PathLocks(locks, root)
        self._reserved: dict[Held, dict[str, Reservation]] = {}
        self._releasing: set[asyncio.Task[None]] = set()

    async def lock(self, held: Held, paths: Sequence[str], wait_s: float) -> dict[str, Any]:
        """Reserve all of `paths`, or none; what the claim has already it has.

        Raises:
            SettingsError: a path leads out of the root, or is a pattern.
            UsageError: the claim would wait for itself.
            LockTimeout: somebody else has one of them, or a part of it.
        """
        mine = [path for reservation in self._of(held).values() for path in reservation.paths]
        wanted = [path for path in self._names.wanted(paths).paths if not any(_is_in(path, own) for own in mine)]
        for path in wanted:
            if inner := [own for own in mine if _is_in(own, path)]:
                raise UsageError(
                    f"{path!r} cannot be reserved beside {inner[0]!r}, which this claim has already",
                    why="the claim would wait for itself",
                    fix="release that first",
                )
        if not wanted:
            return {"reservation": None, "locked": sorted(mine)}
        reservation = await self._locks.acquire(
            wanted, owner=held.client.name, purpose=f"task {held.task.id}", timeout_s=wait_s
        )
        if held.is_over:
            await self._release(reservation)
        else:
            self._of(held)[reservation.id] = reservation
        return {"reservation": reservation.id, "locked": sorted([*mine, *reservation.paths])}

    async def release(self, held: Held, reservation_id: str | None) -> list[str]:
        """Give up a reservation of a claim, all of them by default; return the paths.

        Raises:
            UsageError: the claim has no such reservation.
            LockLost: a part of it was not held any more.
        """
        mine = self._of(held)
        if reservation_id is not None and reservation_id not in mine:
            raise UsageError(
                f"the claim has no reservation {reservation_id!r}",
                why=f"it has {', '.join(mine) or 'none'}",
                fix="pass what lock_paths has returned as `reservation`, or nothing for all",
            )
        gone = [mine.pop(one) for one in ([*mine] if reservation_id is None else [reservation_id])]
        for reservation in gone:
            await self._locks.release(reservation)
        return sorted(path for reservation in gone for path in reservation.paths)

    def drop(self, held: Held) -> None:
        """A claim has ended: give up what it had."""
        for reservation in self._reserved.pop(held, {}).values():
            task = asyncio.get_running_loop().create_task(self._release(reservation))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)

    async def close(self) -> None:
        """Wait until all is given up that was to be."""
        if self._releasing:
            await asyncio.wait(self._releasing)

    async def _release(self, reservation: Reservation) -> None:
        try:
            await self._locks.release(reservation)
        except SennitError as error:
            _log.warning("a reservation of %s: %s", ", ".join(reservation.paths), error)

    def _of(self, held: Held) -> dict[str, Reservation]:
        return self._reserved.setdefault(held, {})


def _is_in(path: str, folder: str) -> bool:
    """Return whether a path is a folder, or in it; case is not told apart, as in the names of the locks."""
    path, folder = path.casefold(), folder.casefold()
    return folder in (".", path) or path.startswith(f"{folder}/")
