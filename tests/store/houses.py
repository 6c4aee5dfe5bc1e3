"""Fleets with something in every table, killed while they worked; and stores as tables of rows, to compare."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from sennit.errors import SennitError
from sennit.model.settings import Settings
from sennit.runtime.moving import open_side
from sennit.runtime.stores import open_store
from sennit.store.copying_sides import Tally
from tests.crash.nursery import Nursery

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "store" / "programs" / "full_house.py"
ENVIRON = {"PYTHONPATH": str(ROOT)}


def fill(url: str, folder: Path) -> None:
    """Fill a store, and kill the process in the middle of its work."""
    argv, pipe = [sys.executable, str(PROGRAM), "fill", url], subprocess.PIPE
    with subprocess.Popen(argv, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=ENVIRON) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        assert said == "full\n", process.communicate()


def house(nursery: Nursery, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the program of the house to its end, in a process of its own."""
    return nursery.run("tests.store.programs.full_house:main", *words, folder=folder, environ=ENVIRON)


def said_by(nursery: Nursery, *words: str, folder: Path) -> dict[str, Any]:
    """The same; return what it says."""
    done = house(nursery, *words, folder=folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def duplicate(path: Path, target: Path) -> str:
    """Copy a file that nobody uses, with its log; return the URL."""
    for suffix in ("", "-wal"):
        if (there := path.with_name(path.name + suffix)).exists():
            shutil.copy(there, target.with_name(target.name + suffix))
    with closing(sqlite3.connect(target)) as file, file:
        file.execute("UPDATE sennit_worker SET expire_us = 0")  # its life locks are not beside the copy: time tells
    return f"sqlite:///{target}"


def tables_of(url: str) -> dict[str, tuple[int, str]]:
    """Return table → rows and digest."""
    found = {}
    with closing(open_side(url, "write", Settings())) as side:
        side.begin(alone=True)
        for table, columns in side.tables().items():
            tally = Tally()
            wanted = sorted(set(columns) - {"shard", "hears", "hungry"})
            for row in side.rows(table, wanted):
                tally.add(row)
            found[table] = tally.n, tally.digest
        side.roll_back()
    return found


def is_open(url: str) -> bool:
    """Return whether a store can be worked with."""
    try:
        open_store(url, Settings(lock_timeout_s=5.0)).close()
    except SennitError as error:
        assert error.code == "S406", error  # noqa: PT017 - any other is no answer
        return False
    return True


def ledger_of(url: str) -> tuple[object, list[str]]:
    """Return the ledger, and what `verify` says."""
    with closing(open_store(url, Settings())) as store:
        return store.ledger().result(), store.verify().result()
