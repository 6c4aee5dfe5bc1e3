"""A move is killed at each of its steps: never are two stores open, never none is whole, and run again it ends."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.nursery import Nursery
from tests.store.houses import house, is_open, ledger_of, said_by, tables_of

# Before the data is final, the source is open; from the moment it is shut, the target has everything.
BEFORE = [
    "shutting the target",
    "reading",
    "sennit_task",
    "sennit_worker",
    "settling",
    "committing the target",
    "shutting the source",
]
AFTER = ["opening the target", "done"]


@pytest.fixture(params=["to a server", "to a file"])
def way(
    request: pytest.FixtureRequest, nursery: Nursery, here: str, fresh_database: Callable[..., str], tmp_path: Path
) -> tuple[str, str]:
    """Source and target."""
    if request.param == "to a server":
        return here, fresh_database()
    server = fresh_database()
    said_by(nursery, "move", here, server, "never", folder=tmp_path)
    return server, f"sqlite:///{tmp_path}/there.db"


def killed(nursery: Nursery, way: tuple[str, str], step: str, folder: Path) -> None:
    done = house(nursery, "move", *way, step, folder=folder)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("step", BEFORE)
def test_killed_before_the_end_the_source_is_whole_and_the_target_is_shut(
    nursery: Nursery, way: tuple[str, str], step: str, tmp_path: Path
) -> None:
    source, target = way
    ledger, before = ledger_of(source)[0], tables_of(source)

    killed(nursery, way, step, tmp_path)

    assert is_open(source)
    assert tables_of(source) == before
    assert not is_open(target) or step == "shutting the target"
    done = said_by(nursery, "move", *way, "never", folder=tmp_path)
    assert done["resumed"] is False
    assert (is_open(source), is_open(target)) == (False, True)
    assert ledger_of(target) == (ledger, [])


@pytest.mark.parametrize("step", AFTER)
def test_killed_after_the_source_is_shut_the_target_has_everything(
    nursery: Nursery, way: tuple[str, str], step: str, tmp_path: Path
) -> None:
    source, target = way
    ledger = ledger_of(source)[0]

    killed(nursery, way, step, tmp_path)

    assert not is_open(source)
    if step != "done":
        assert not is_open(target)
        assert said_by(nursery, "move", *way, "never", folder=tmp_path)["resumed"] is True
    assert is_open(target)
    assert ledger_of(target) == (ledger, [])
