"""The providers' part of the memory store: permits and budgets, as `store.protocol_providers` promises them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from sennit.limit import governor
from sennit.limit.feedback_report import checked_report
from sennit.model.lifecycle import Event, State
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
from sennit.store import memory_look as look
from sennit.store.memory_threads import ThreadFace
from sennit.store.memory_waits import waits
from sennit.store.protocol_providers import Steer
from sennit.sync.ack import Ack


class ProviderFace(ThreadFace):
    """What the store promises about providers."""

    # ------------------------------------------------------------ what is known of providers

    def declare_provider(self, spec: ProviderSpec) -> Ack[ProviderView]:
        """Store what is declared of a provider."""

        def operation(_: int) -> ProviderView:
            self._rows.providers.declare(spec)
            return look.provider(self._rows, spec.name)

        return self._do(operation)

    def providers(self, names: Sequence[str] = ()) -> Ack[list[ProviderView]]:
        """Return the providers, by name."""

        def operation(_: int) -> list[ProviderView]:
            return [look.provider(self._rows, name) for name in sorted({*names} or self._rows.providers.known)]

        return self._do(operation)

    def steer_provider(self, name: str, how: Steer, *, until_us: int | None = None) -> Ack[ProviderView]:
        """Isolate, pause or reset a provider."""

        def operation(now_us: int) -> ProviderView:
            known = self._rows.providers.find(name)
            match how:
                case "isolate":
                    governor.isolate(known.spec, known.state, now_us)
                case "pause":
                    until = now_us if until_us is None else until_us
                    governor.pause(known.spec, known.state, now_us, until_us=until)
                case "reset":
                    governor.reset(known.spec, known.state, now_us)
                case _:
                    assert_never(how)
            return look.provider(self._rows, name)

        return self._do(operation)

    def forget_provider(self, name: str) -> Ack[bool]:
        """Delete a provider that nobody uses or waits for."""

        def operation(_: int) -> bool:
            providers = self._rows.providers
            permits = providers.permits
            is_needed = permits.in_use(name) or permits.stood_in(name) or permits.waiting_for(name)
            if is_needed or look.ready_for(self._rows, name):
                return False
            return providers.known.pop(name, None) is not None

        return self._do(operation)

    # ------------------------------------------------------------ permits

    def take_permit(self, request: PermitRequest) -> Ack[Permit]:
        """Resolve with a permit as soon as there is one."""

        def watch() -> Ack[Permit]:
            self._seat.is_needed(now_us=self._database.now_us())
            return self._rows.providers.line_up(request, holder=self._seat.holder)

        return self._watch(watch)

    def return_permit(self, permit_id: int, report: CallReport | None = None) -> Ack[bool]:
        """Take a permit back, or a request that waits."""
        said = None if report is None else checked_report(report)
        return self._do(lambda _: self._rows.providers.give_back(permit_id, said, holder=self._seat.holder))

    def report_call(self, provider: str, report: CallReport, *, task_id: int | None = None) -> Ack[None]:
        """Learn from a call that had no permit."""
        return self._do(lambda _: self._rows.providers.learn(provider, checked_report(report), task_id))

    def waits(self, task_id: int) -> Ack[dict[str, int]]:
        """Return for how long a task has waited, by reason."""
        return self._do(lambda _: waits(self._rows, self._row(task_id)))

    # ------------------------------------------------------------ budgets

    def set_budget(self, budget: Budget) -> Ack[BudgetView]:
        """Set or change a budget; tasks that were suspended for want of it are ready again."""

        def operation(now_us: int) -> BudgetView:
            view = self._rows.providers.budgets.put(budget)
            for row in self._rows.tasks.values():
                if (row.state, row.reason) == (State.SUSPENDED, "budget") and self._rows.providers.spent(row) is None:
                    self._rows.make_ready(row, Event.RESUME, now_us=now_us)
            return view

        return self._do(operation)

    def budgets(self, scope: BudgetScope | None = None) -> Ack[list[BudgetView]]:
        """Return the budgets, and what was spent of each."""
        return self._do(lambda _: self._rows.providers.budgets.views(scope))
