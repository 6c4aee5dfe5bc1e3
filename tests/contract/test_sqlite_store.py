"""The SQLite store keeps the contract; every connection opens the same file again, as another process would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sennit.model.admission import Bounds
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract import StoreContract, VirtualClock


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path, clock: VirtualClock, bounds: Bounds) -> Callable[[], SqliteStore]:
        path = tmp_path / "tasks.db"
        return lambda: SqliteStore(path, durability="normal", now_us=clock.now_us, bounds=bounds)
