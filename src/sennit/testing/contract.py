"""The contract of `sennit.store.protocol.Store` as tests: subclass `StoreContract`, say how to open yours, run pytest.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def make_store(self, tmp_path: Path, clock: VirtualClock, bounds: Bounds) -> Callable[[], Store]:
            return lambda: MyStore(tmp_path / "tasks.db", now_us=clock.now_us, bounds=bounds)

Each call of what `make_store` returns opens the same, at first empty, database again: as another process would. A
store whose clock cannot be set overrides the fixture `clock` with one that skips; the tests that need time to pass are
then left out. One that takes no `Bounds` overrides the fixture `bounds` with one that skips all but `Bounds()`. After
every test the rows must verify and the ledger must balance.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator

import pytest

_PARTS = [
    f"sennit.testing.contract_{part}"
    for part in (
        *("tools", "submit", "claim", "finish", "cascade", "revive", "time", "look"),
        *("turns", "busy", "room", "state", "asks", "expiry", "signals", "cache", "entry", "threads"),
        *("permits", "reports", "providers", "provider_tasks", "budgets", "waits", "routes"),
        *("locks", "fences", "stealing", "agents"),
    )
]
pytest.register_assert_rewrite(*(part for part in _PARTS if part not in sys.modules))

# ruff: noqa: E402 - asserts are rewritten, so that they show their values, only in modules imported after this
from sennit.model.admission import Bounds
from sennit.store.protocol import Store
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_agents import AgentsContract
from sennit.testing.contract_asks import AsksContract
from sennit.testing.contract_budgets import BudgetsContract
from sennit.testing.contract_cascade import CascadeContract
from sennit.testing.contract_claim import ClaimContract
from sennit.testing.contract_entry import EntryContract
from sennit.testing.contract_expiry import ExpiryContract
from sennit.testing.contract_fences import LocksContract
from sennit.testing.contract_finish import FinishContract
from sennit.testing.contract_look import LookContract
from sennit.testing.contract_permits import PermitsContract
from sennit.testing.contract_provider_tasks import ProviderTaskContract
from sennit.testing.contract_providers import ProvidersContract
from sennit.testing.contract_reports import ReportsContract
from sennit.testing.contract_revive import ReviveContract
from sennit.testing.contract_routes import RoutesContract
from sennit.testing.contract_signals import SignalsContract
from sennit.testing.contract_state import StateContract
from sennit.testing.contract_stealing import StealingContract
from sennit.testing.contract_submit import SubmitContract
from sennit.testing.contract_threads import ThreadsContract
from sennit.testing.contract_time import TimeContract
from sennit.testing.contract_tools import Rig, running_loop
from sennit.testing.contract_turns import TurnsContract
from sennit.testing.contract_waits import WaitsContract

__all__ = ["StoreContract", "VirtualClock"]


class StoreContract(
    SubmitContract,
    ClaimContract,
    FinishContract,
    CascadeContract,
    ReviveContract,
    TimeContract,
    LookContract,
    TurnsContract,
    StateContract,
    ThreadsContract,
    AsksContract,
    ExpiryContract,
    SignalsContract,
    EntryContract,
    ProvidersContract,
    PermitsContract,
    ReportsContract,
    ProviderTaskContract,
    BudgetsContract,
    WaitsContract,
    LocksContract,
    RoutesContract,
    StealingContract,
    AgentsContract,
):
    """Every sentence of the protocol's docstrings is a test here."""

    @pytest.fixture
    def clock(self) -> VirtualClock:
        """The store's clock; it stands still until a test moves it."""
        return VirtualClock()

    @pytest.fixture
    def bounds(self, request: pytest.FixtureRequest) -> Bounds:
        """What every store object of the test enforces; a test says what by parametrizing it indirectly."""
        bounds: Bounds = getattr(request, "param", Bounds())
        return bounds

    @pytest.fixture
    def make_store(self) -> Callable[[], Store]:
        """Open the store under test; to be overridden."""
        raise NotImplementedError("override the fixture make_store")

    @pytest.fixture
    def loop(self) -> Iterator[asyncio.AbstractEventLoop]:
        """An event loop that runs in an OS thread of its own; listeners are called there."""
        with running_loop() as loop:
            yield loop

    @pytest.fixture
    def open_rig(
        self, make_store: Callable[[], Store], loop: asyncio.AbstractEventLoop
    ) -> Iterator[Callable[..., Rig]]:
        """Open one more process at the store; all are checked and closed at the end."""
        opened: list[Rig] = []

        def open_rig(*, lease_s: float = 1e6, labels: tuple[str, ...] = (), version: str = "") -> Rig:
            opened.append(Rig(make_store(), loop, lease_s=lease_s, labels=labels, version=version))
            return opened[-1]

        yield open_rig
        for rig in opened:
            rig.check()
        for rig in opened:
            rig.store.close()

    @pytest.fixture
    def rig(self, open_rig: Callable[..., Rig]) -> Rig:
        """One process, joined as a worker whose lease will not lapse."""
        return open_rig()
