"""Where a run keeps its things: in a temporary folder that goes with the run, or beside the database that was named.

temporary   demo.db   journal.jsonl   workers.log   agents/          demo.db.agents/
--db X      X         X.demo.jsonl    X.demo.log    X.demo.agents/   X.agents/         (what each run of an agent has written)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Files and folders of one run.

    Attributes:
        agents: of the agents' program: its log and sessions.
    """

    database: Path
    journal: Path
    log: Path
    agents: Path

    @property
    def url(self) -> str:
        """Of the store."""
        return f"sqlite:///{self.database}"

    def __str__(self) -> str:
        """Name all of it."""
        every = (
            self.database,
            self.journal,
            self.log,
            self.agents,
            self.database.with_name(f"{self.database.name}.agents"),
        )
        return ", ".join(str(path) for path in every if path.exists())


@contextmanager
def place_for(db: Path | None, *, keep: bool) -> Iterator[Place]:
    """Yield the place of a run; a temporary one is removed at the end, unless it is to be kept."""
    if db is not None:
        database = db.absolute()
        yield Place(
            database=database,
            journal=database.with_name(f"{database.name}.demo.jsonl"),
            log=database.with_name(f"{database.name}.demo.log"),
            agents=database.with_name(f"{database.name}.demo.agents"),
        )
    elif keep:
        yield _in(Path(tempfile.mkdtemp(prefix="sennit-demo-")))
    else:
        with tempfile.TemporaryDirectory(prefix="sennit-demo-", ignore_cleanup_errors=True) as made:
            yield _in(Path(made))


def _in(folder: Path) -> Place:
    return Place(
        database=folder / "demo.db",
        journal=folder / "journal.jsonl",
        log=folder / "workers.log",
        agents=folder / "agents",
    )
