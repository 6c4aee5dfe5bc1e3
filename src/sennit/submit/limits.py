"""Calls to a provider, one permit each: `async with provider.slot() as call:` in async code, `with` in sync code.

    slot ──► the permit that came with the claim, if the attempt has not used it yet
         └─► else one of its own: in line with the calls of all processes on this store
    call ──report──► limit, rates, pause, breaker, budgets          (no report: the exception says how it went, or it went well)

An attempt that waits in line holds no slot. One whose provider is paused is given back rather than left waiting: it keeps
its finished steps, and runs again when the provider takes calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, Final, Protocol, Self

import msgspec

from sennit.errors import SettingsError, UsageError
from sennit.limit.clients import ClientPool
from sennit.limit.feedback_report import checked_report
from sennit.model.order import Priority
from sennit.model.provider import (
    TOKENS_MAX,
    CallReport,
    Permit,
    PermitRequest,
    ProviderView,
    Usage,
    checked_provider_name,
    is_number,
    split_name,
)
from sennit.store.protocol_providers import ProviderStore
from sennit.submit.attempt import Attempt, current
from sennit.submit.permits import how_it_went, returned, take
from sennit.sync.ack import Ack, in_event_loop
from sennit.sync.pending import Flow, run, run_blocking

PAUSE_S_MAX: Final = 366 * 86_400.0


class CallStore(ProviderStore, Protocol):
    """What calls need of the store."""

    def now_us(self) -> int:
        """The store's clock."""

    def take_ids(self, n: int) -> Sequence[int]:
        """Return new ids."""


class Call:
    """One call that may be made now.

    Attributes:
        provider, model: whom to call: a fallback when the one asked for is closed.
        permit: that lets it through; `permit.is_probe` when the fleet waits for how it goes.
    """

    def __init__(self, permit: Permit, asked_model: str) -> None:
        self.permit = permit
        self.provider = permit.provider
        self.model = permit.model or asked_model
        self._report: CallReport | None = None

    def report(self, report: CallReport) -> None:
        """Say how it went; the last word counts, and is passed on when the `with` block ends.

        Raises:
            UsageError: it is no CallReport.
        """
        if not isinstance(report, CallReport):
            raise UsageError(f"report() was given {report!r}", fix="give a CallReport, or say used(input_tokens=…)")
        self._report = report

    def used(self, *, input_tokens: int = 0, output_tokens: int = 0, model: str = "") -> None:
        """Say that it went well, and what it used."""
        usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        self._report = CallReport(usage=usage, model=model or self.model)

    def ended(self, error: BaseException | None, duration_us: int) -> CallReport:
        """Return how it went: as was reported, else as the exception says that left the block."""
        report = self._report
        if report is None or (error is not None and report.outcome == "ok"):
            as_seen = how_it_went(error)
            report = (
                as_seen if report is None else msgspec.structs.replace(as_seen, usage=report.usage, model=report.model)
            )
        report = checked_report(report)
        return msgspec.structs.replace(
            report, duration_us=report.duration_us or duration_us, model=report.model or self.model
        )


class Slot(AbstractAsyncContextManager[Call], AbstractContextManager[Call]):
    """Waits for a permit on entry, returns it with a report on exit. For one use."""

    def __init__(
        self,
        store: CallStore,
        provider: str,
        *,
        tokens: int,
        priority: int | None,
        wait: bool,
        cost_nano: Callable[[str, Usage], int],
    ) -> None:
        self._store = store
        self._provider = provider
        self._tokens = tokens
        self._priority = priority
        self._wait = wait
        self._cost_nano = cost_nano
        self._attempt: Attempt | None = None
        self._call: Call | None = None
        self._begun_us = 0

    async def __aenter__(self) -> Call:
        return await run(self._enter())

    def __enter__(self) -> Call:
        if in_event_loop():
            raise UsageError(
                "`with provider.slot()` was used on an event loop",
                why="it would block every other coroutine of this loop",
                fix="write `async with provider.slot()`",
            )
        return run_blocking(self._enter())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del kind, traceback
        self._exit(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del kind, traceback
        self._exit(error)

    def _enter(self) -> Flow[Call]:
        if self._call is not None:
            raise UsageError("a slot was entered twice", fix="call slot() for each call")
        attempt = current()
        self._attempt = attempt if attempt is not None and attempt.store is self._store else None
        permit = None if self._attempt is None else self._attempt.permit.use(self._provider)
        if permit is None:
            permit = yield from self._take(self._attempt)
        self._begun_us = self._store.now_us()
        self._call = Call(permit, split_name(self._provider)[1])
        return self._call

    def _take(self, attempt: Attempt | None) -> Flow[Permit]:
        if attempt is not None and self._wait:
            return (yield from attempt.take_permit(self._provider, priority=self._priority, tokens=self._tokens))
        priority = self._priority
        if priority is None:
            priority = Priority.NORMAL if attempt is None else attempt.task.priority
        request = PermitRequest(
            id=self._store.take_ids(1)[0],
            provider=self._provider,
            priority=priority,
            tokens=self._tokens,
            task_id=None if attempt is None else attempt.task.id,
            wait=self._wait,
        )
        return (yield from take(self._store, request))

    def _exit(self, error: BaseException | None) -> None:
        call = self._call
        if call is None:
            return
        report = call.ended(error, self._store.now_us() - self._begun_us)
        if report.usage is not None and not report.usage.cost_nano:
            cost_nano = self._cost_nano(report.model, report.usage)
            if cost_nano:
                report = msgspec.structs.replace(
                    report, usage=msgspec.structs.replace(report.usage, cost_nano=cost_nano)
                )
        if self._attempt is None:
            returned(self._store, call.permit.id, report, call.provider)
        else:
            self._attempt.permit.give_back(call.permit, report)
            self._attempt.permit.note_throttled(error, call.provider, report)


class Limits:
    """The limits of all providers of one store, for code of any kind: `async with limits.slot("anthropic") as call:`.

    Args:
        store: returns the open store.
        cost_nano: the price of a call by model and usage, in nano-dollars; 0 when it is not known.
    """

    def __init__(self, store: Callable[[], CallStore], cost_nano: Callable[[str, Usage], int]) -> None:
        self._store = store
        self._cost_nano = cost_nano

    def slot(
        self, provider: str, *, tokens: int = 0, priority: Priority | str | None = None, wait: bool = True
    ) -> Slot:
        """Wait for a permit, make one call, report how it went.

        Args:
            provider: `name` or `name/model`; one that was never declared has the default ceiling.
            tokens: an estimate of what it will use, reserved from the rates; what it used is settled by the report.
            priority: before calls of lower priority; default: that of the task, or normal.
            wait: False raises ProviderBusy when there is no permit now.

        Raises:
            SettingsError: at once: no provider can be called so, or `tokens` is no number of them.
            ProviderBusy: see `wait`.
            BudgetExceeded: what may be spent is spent.
        """
        if not isinstance(provider, str):
            raise SettingsError(f"a provider cannot be called {provider!r}", fix="give its name, or name/model")
        checked_provider_name(split_name(provider)[0])
        if not is_number(tokens, TOKENS_MAX, whole=True):
            raise SettingsError(
                f"a call cannot reserve tokens={tokens!r}", fix=f"give a whole number from 0 to {TOKENS_MAX:,}"
            )
        number = None if priority is None else int(Priority.parse(priority))
        return Slot(self._store(), provider, tokens=tokens, priority=number, wait=wait, cost_nano=self._cost_nano)

    def providers(self, *names: str) -> Ack[list[ProviderView]]:
        """Return what is known of all providers, or of these."""
        return self._store().providers(names)


class Provider:
    """One provider of an app: what answers model calls under one credential."""

    def __init__(
        self, limits: Limits, store: Callable[[], CallStore], name: str, pool: Callable[[], ClientPool[Any]] | None
    ) -> None:
        self._limits = limits
        self._store = store
        self._pool = pool
        self.name = name

    def __repr__(self) -> str:
        return f"<Provider {self.name}>"

    def model(self, name: str) -> Self:
        """Return this provider for one of its models, whose sub-limits hold besides."""
        return type(self)(self._limits, self._store, f"{split_name(self.name)[0]}/{name}", self._pool)

    def slot(self, *, tokens: int = 0, priority: Priority | str | None = None, wait: bool = True) -> Slot:
        """Wait for a permit, make one call, report how it went; see `Limits.slot`."""
        return self._limits.slot(self.name, tokens=tokens, priority=priority, wait=wait)

    def client(self) -> AbstractAsyncContextManager[Any]:
        """Return the shared client: `async with provider.client() as c`. It is closed when idle for `idle_s`.

        Raises:
            UsageError: the provider was declared without `client=`.
        """
        if self._pool is None:
            raise UsageError(
                f"provider {self.name!r} has no client", fix="declare it: app.provider(name, client=AsyncAnthropic)"
            )
        return self._pool().client()

    def view(self) -> Ack[list[ProviderView]]:
        """Look at it: limit, what is in use, pause, breaker, counts."""
        return self._limits.providers(split_name(self.name)[0])

    def isolate(self) -> Ack[ProviderView]:
        """Let no call through until `reset`."""
        return self._store().steer_provider(split_name(self.name)[0], "isolate")

    def pause(self, seconds: float) -> Ack[ProviderView]:
        """Let no call through for so long; then probe and ramp up.

        Raises:
            SettingsError: it is not from 0 to PAUSE_S_MAX.
        """
        if not is_number(seconds, PAUSE_S_MAX):
            raise SettingsError(
                f"a provider cannot pause for {seconds!r} s", fix=f"give seconds from 0 to {PAUSE_S_MAX:,.0f}, a year"
            )
        store = self._store()
        until_us = store.now_us() + int(seconds * 1_000_000)
        return store.steer_provider(split_name(self.name)[0], "pause", until_us=until_us)

    def reset(self) -> Ack[ProviderView]:
        """Lift pause and isolation, close the breaker, let the limit begin anew."""
        return self._store().steer_provider(split_name(self.name)[0], "reset")
