"""What an app offers about providers and budgets; the half of `App` that is about limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sennit.errors import SettingsError
from sennit.model.provider import (
    NANO,
    TOKENS_MAX,
    USD_MAX,
    BreakerSpec,
    Budget,
    BudgetScope,
    BudgetView,
    OnExceeded,
    Rates,
    Strategy,
    checked_provider_name,
    is_number,
    split_name,
)
from sennit.model.settings import Settings
from sennit.runtime.providers import Providers
from sennit.store.protocol import Store
from sennit.submit.limits import Limits, Provider
from sennit.submit.registry import Task
from sennit.sync.ack import Ack

_DEFAULT_BREAKER = BreakerSpec()


class ProviderFace:
    """Declares providers and budgets, and lets calls through them."""

    settings: Settings
    store: Store
    _providers: Providers

    def provider(
        self,
        name: str,
        *,
        parallel: int | None = None,
        rpm: int = 0,
        tpm: int = 0,
        input_tpm: int = 0,
        output_tpm: int = 0,
        models: Mapping[str, Rates | Mapping[str, int]] | None = None,
        strategy: Strategy = "aimd",
        singleton: bool = False,
        breaker: BreakerSpec | None = _DEFAULT_BREAKER,
        fallbacks: Sequence[Provider | str] = (),
        idle_s: float = 300.0,
        client: Callable[[], Any] | None = None,
        prices: Mapping[str, tuple[float, float]] | None = None,
    ) -> Provider:
        """Declare whatever answers model calls under one credential; its limits hold for all processes on the store.

        Args:
            name: of the credential pool: whoever uses the same API key names the same provider.
            parallel: calls at once, the ceiling; the limit moves below it as `strategy` says. Default: the setting
                `provider_parallel`.
            rpm, tpm: requests and tokens per minute; input_tpm, output_tpm: for providers that count them apart. 0 is no
                bound.
            models: sub-limits by model: `{"opus": {"parallel": 2, "tpm": 40_000}}`.
            strategy: `aimd`; `gradient` or `vegas` when calls report their tokens; `fixed` does not move.
            singleton: a local server that answers one call at a time: calls queue, and none is refused.
            breaker: when calls are refused for a while because too many failed; None is none.
            fallbacks: providers that stand in, in order, while this one is paused or its breaker is open.
            client: makes the client that `async with provider.client()` shares; idle_s: it is closed when unused so long.
            prices: model → (input, output), US dollars per million tokens; beside `[prices]` of the configuration file.

        Raises:
            SettingsError: a bound is negative, or a name or strategy cannot be.
        """
        return self._providers.declare(
            name, parallel=self.settings.provider_parallel if parallel is None else parallel, rpm=rpm, tpm=tpm,
            input_tpm=input_tpm, output_tpm=output_tpm, models=models, strategy=strategy, singleton=singleton,
            breaker=breaker, fallbacks=fallbacks, idle_s=idle_s, client=client, prices=prices,
        )  # fmt: skip

    @property
    def limits(self) -> Limits:
        """The limits of all providers, for code that is no task: `async with app.limits.slot("anthropic") as call:`."""
        return self._providers.limits

    def budget(
        self,
        scope: BudgetScope = "fleet",
        key: str | int | Task[..., Any] | Provider = "",
        *,
        tokens: int = 0,
        usd: float = 0.0,
        on_exceeded: OnExceeded = "fail",
    ) -> Ack[BudgetView]:
        """Bound what may be spent; `await` it, or `.result()`. What was spent before stays; without bounds it is lifted.

        Calls that are under way are counted when they end, so it may be a little more.

        Args:
            scope, key: the fleet; or a provider, handler (its name, or the task itself), thread or task, by its name or id.
                Key "" of a handler, thread or task is a bound for each of them.
            tokens: input and output together.  usd: by the price table.
            on_exceeded: `fail` fails an attempt that would spend more, `ask` asks a person, who may raise the bound.

        Raises:
            SettingsError: a bound is negative, or the scope is none.
        """
        if scope not in {"fleet", "provider", "handler", "thread", "task"}:
            raise SettingsError(
                f"a budget of {scope!r} cannot be", fix="it is of fleet, provider, handler, thread or task"
            )
        if on_exceeded not in {"fail", "ask"}:
            raise SettingsError(f"on_exceeded={on_exceeded!r} of a budget cannot be", fix='it is "fail" or "ask"')
        if not (is_number(tokens, TOKENS_MAX, whole=True) and is_number(usd, USD_MAX)):
            raise SettingsError(
                f"a budget of {tokens} tokens and {usd} USD cannot be",
                fix=f"give a whole number of tokens and an amount, at least 0, at most {TOKENS_MAX:,} tokens and {USD_MAX:,} USD",
            )
        named = str(key) if isinstance(key, (str, int)) else key.name
        if scope == "provider":
            named = checked_provider_name(split_name(named)[0])
        if scope == "fleet" and named:
            raise SettingsError(f"the fleet is one: its budget has no key {named!r}", fix="leave the key out")
        cost_nano_max = max(round(usd * NANO), int(usd > 0))  # so little is not "no bound"
        return self.store.set_budget(
            Budget(scope=scope, key=named, tokens_max=tokens, cost_nano_max=cost_nano_max, on_exceeded=on_exceeded)
        )

    def budgets(self) -> Ack[list[BudgetView]]:
        """Return the budgets, and what is spent of each."""
        return self.store.budgets()
