"""The PostgreSQL store keeps the contract; every connection opens the same database again, as another process would."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sennit.model.admission import Bounds
from sennit.store.postgres import PostgresStore
from sennit.testing.contract import StoreContract, VirtualClock


class TestPostgresStore(StoreContract):
    @pytest.fixture
    def make_store(self, postgres_url: str, clock: VirtualClock, bounds: Bounds) -> Callable[[], PostgresStore]:
        return lambda: PostgresStore(postgres_url, durability="normal", now_us=clock.now_us, bounds=bounds)
