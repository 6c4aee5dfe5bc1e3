"""Processes that reserve paths of one repository again and again, and look whether anybody else is in them."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import ExitStack, closing
from pathlib import Path

from sennit.execute.path_locks import PathLocks, lock_paths
from sennit.store.leases import Locks
from sennit.store.sqlite import SqliteStore

FILES = [f"{folder}/{name}" for folder in ("a", "a/b", "c") for name in ("x", "y")]
PLACES = [*FILES, "a", "a/b", "c", "."]


def open_locks(folder: Path, stack: ExitStack) -> Locks:
    store = stack.enter_context(closing(SqliteStore(folder / "locks.db", durability="normal")))
    return stack.enter_context(closing(Locks(lambda: store, lambda: "")))


def contend(folder: str, seed: str, rounds: str) -> int:
    """Program: reserves some places, and makes a mark for each file in them that nobody else may have made."""
    chance = random.Random(int(seed))
    marks, repository = Path(folder) / "marks", Path(folder) / "repository"

    async def main(locks: Locks) -> None:
        for _ in range(int(rounds)):
            places = chance.sample(PLACES[:-1] if chance.random() < 0.9 else PLACES, chance.randint(1, 3))
            async with lock_paths(locks, repository, places, owner=seed):
                mine = [
                    file
                    for file in FILES
                    if any(place in (".", file) or file.startswith(f"{place}/") for place in places)
                ]
                for file in mine:
                    os.close(os.open(marks / file.replace("/", "-"), os.O_CREAT | os.O_EXCL))
                await asyncio.sleep(0)
                for file in mine:
                    (marks / file.replace("/", "-")).unlink()

    with ExitStack() as stack:
        asyncio.run(main(open_locks(Path(folder), stack)))
    return 0


def hold(folder: str, place: str) -> int:
    """Program: reserves a place, says so, and holds it until it is killed."""

    async def main(locks: Locks) -> None:
        await PathLocks(locks, Path(folder) / "repository").acquire([place], owner="holder")
        os.write(1, b"!")
        await asyncio.Event().wait()

    with ExitStack() as stack:
        asyncio.run(main(open_locks(Path(folder), stack)))
    return 0
