"""The memory store keeps the contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sennit.store.memory import MemoryStore
from sennit.testing.contract import StoreContract, VirtualClock


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def make_store(self, clock: VirtualClock) -> Callable[[], MemoryStore]:
        return MemoryStore(now_us=clock.now_us).connect
