"""The part of the stores with rows for providers: `store.protocol_providers.ProviderStore`; its promises are the docstrings there."""

# ruff: noqa: D102 - the promises stand in store/protocol_providers.py, once

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from sennit.limit.feedback_report import checked_report
from sennit.model.admission import Bounds
from sennit.model.provider import (
    Budget,
    BudgetScope,
    BudgetView,
    CallReport,
    Permit,
    PermitRequest,
    ProviderSpec,
    ProviderView,
)
from sennit.store.database import Connection
from sennit.store.desk import Desk
from sennit.store.effects import Effects
from sennit.store.moves import budget, permit, provider, wait
from sennit.store.moves.provider import Pools
from sennit.store.protocol_providers import Steer
from sennit.store.reader import Reader
from sennit.store.writer import Writer
from sennit.sync.ack import Ack

T = TypeVar("T")


class RowProviders:
    """Providers, permits and budgets in rows."""

    bounds: Bounds
    now_us: Callable[[], int]
    _writer: Writer[Effects]
    _reader: Reader
    _desk: Desk

    # ------------------------------------------------------------ what is known of providers

    def declare_provider(self, spec: ProviderSpec) -> Ack[ProviderView]:
        return self._with_pools(lambda pools, effects: provider.declare(pools, effects, spec))

    def providers(self, names: Sequence[str] = ()) -> Ack[list[ProviderView]]:
        return self._reader.put(lambda c: provider.views(Pools(c, self.now_us(), self.bounds), names))

    def steer_provider(self, name: str, how: Steer, *, until_us: int | None = None) -> Ack[ProviderView]:
        return self._with_pools(lambda pools, effects: provider.steer(pools, effects, name, how, until_us))

    def forget_provider(self, name: str) -> Ack[bool]:
        return self._writer.put(lambda c, fx: provider.forget(c, Pools(c, fx.now_us, fx.bounds), name))

    def _with_pools(self, change: Callable[[Pools, Effects], T]) -> Ack[T]:
        """Change a provider in an operation of its own: what it changes goes with it if it is undone."""

        def operation(connection: Connection, effects: Effects) -> T:
            pools = Pools(connection, effects.now_us, effects.bounds)
            value = change(pools, effects)
            pools.flush(effects)
            return value

        return self._writer.put(operation)

    # ------------------------------------------------------------ permits

    def take_permit(self, request: PermitRequest) -> Ack[Permit]:
        return self._desk.permits.take(request)

    def return_permit(self, permit_id: int, report: CallReport | None = None) -> Ack[bool]:
        return self._desk.permits.give_back(permit_id, None if report is None else checked_report(report))

    def report_call(self, provider: str, report: CallReport, *, task_id: int | None = None) -> Ack[None]:
        said = checked_report(report)
        return self._writer.put(lambda c, fx: permit.report(c, fx, provider, said, task_id=task_id))

    # ------------------------------------------------------------ budgets

    def set_budget(self, budget_: Budget) -> Ack[BudgetView]:
        return self._writer.put(lambda c, fx: budget.put(c, fx, budget_))

    def budgets(self, scope: BudgetScope | None = None) -> Ack[list[BudgetView]]:
        return self._reader.put(lambda c: budget.budgets(c, scope))

    # ------------------------------------------------------------ waits

    def waits(self, task_id: int) -> Ack[dict[str, int]]:
        return self._reader.put(lambda c: wait.waits(c, task_id))
