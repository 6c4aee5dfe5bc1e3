"""An app on a SQLite file of its own, for the tests of the runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sennit import App


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/fleet.db"


@pytest.fixture
def app(url: str) -> Iterator[App]:
    """Not working yet: `with app` or `async with app` starts it. `normal` spares the tests an fsync per commit."""
    app = App(url, durability="normal")
    yield app
    app.close()


@pytest.fixture(params=["memory", "sqlite"])
def any_app(request: pytest.FixtureRequest, url: str) -> Iterator[App]:
    """The same, once on each store; with more slots than a provider has room."""
    app = App("memory://" if request.param == "memory" else url, durability="normal", slots=20)
    yield app
    app.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body is given up, and a task without a handler offered again, after half a second instead of five."""
    monkeypatch.setattr("sennit.execute.worker.ABANDON_S", 0.5)
    monkeypatch.setattr("sennit.execute.missing.SNOOZE_S", 0.5)
