"""The providers of one app: what was declared, kept until the store is open, and what their calls cost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from sennit.errors import SettingsError, StoreError
from sennit.limit.breaker import checked_spec
from sennit.limit.clients import ClientPool
from sennit.limit.prices import Prices
from sennit.model.provider import (
    STRATEGIES,
    BreakerSpec,
    ProviderSpec,
    Rates,
    Strategy,
    checked_provider_name,
    is_number,
    split_name,
)
from sennit.store.protocol import Store
from sennit.submit.limits import Limits, Provider

_log = logging.getLogger("sennit")

BOUND_MAX: Final = 1_000_000_000


class Providers:
    """What an app has declared.

    Args:
        store: returns the open store; opens it.
        opened: returns it if it is open.
    """

    def __init__(self, store: Callable[[], Store], opened: Callable[[], Store | None], prices: Prices) -> None:
        self._store = store
        self._opened = opened
        self.prices = prices
        self.limits = Limits(store, prices.cost_nano)
        self._specs: dict[str, ProviderSpec] = {}
        self._factories: dict[str, Callable[[], Any]] = {}
        self._pools: dict[str, ClientPool[Any]] = {}
        self._lock = threading.Lock()

    def declare(
        self,
        name: str,
        *,
        parallel: int,
        rpm: int = 0,
        tpm: int = 0,
        input_tpm: int = 0,
        output_tpm: int = 0,
        models: Mapping[str, Rates | Mapping[str, int]] | None = None,
        strategy: Strategy = "aimd",
        singleton: bool = False,
        breaker: BreakerSpec | None = None,
        fallbacks: Sequence[Provider | str] = (),
        idle_s: float = 300.0,
        client: Callable[[], Any] | None = None,
        prices: Mapping[str, tuple[float, float]] | None = None,
    ) -> Provider:
        """See `App.provider`."""
        checked_provider_name(name)
        if strategy not in STRATEGIES:
            raise SettingsError(f"strategy={strategy!r} is none of {', '.join(STRATEGIES)}")
        own = _rates(
            name, {"parallel": parallel, "rpm": rpm, "tpm": tpm, "input_tpm": input_tpm, "output_tpm": output_tpm}
        )
        if own.parallel < 1:
            raise SettingsError(f"provider {name!r} has parallel={parallel!r}", fix="give a number of at least 1")
        if not is_number(idle_s, threading.TIMEOUT_MAX):
            raise SettingsError(f"provider {name!r} has idle_s={idle_s!r}", fix="give seconds, at least 0")
        if not (breaker is None or isinstance(breaker, BreakerSpec)):
            raise SettingsError(f"provider {name!r} has breaker={breaker!r}", fix="give a BreakerSpec, or None")
        if client is not None and not callable(client):
            raise SettingsError(
                f"provider {name!r} has client={client!r}", fix="give what makes one: client=AsyncAnthropic"
            )
        spec = ProviderSpec(
            name=name,
            rates=own,
            models=_models(name, models or {}),
            strategy="fixed" if singleton else strategy,
            singleton=bool(singleton),
            breaker=None if breaker is None else checked_spec(breaker),
            fallbacks=_fallbacks(name, fallbacks),
            idle_s=idle_s,
        )
        self.prices.add(prices or {})
        self._specs[name] = spec
        if client is not None:
            self._factories[name] = client
        store = self._opened()
        if store is not None:
            self._tell(store, [spec])
        return Provider(self.limits, self._store, name, partial(self._pool, name) if name in self._factories else None)

    def _pool(self, name: str) -> ClientPool[Any]:
        """Return the pool of a provider's clients; a new one after `close`, since an app may be entered again."""
        with self._lock:
            if name not in self._pools:
                self._pools[name] = ClientPool(self._factories[name], idle_s=self._specs[name].idle_s)
            return self._pools[name]

    def declare_all(self, store: Store) -> None:
        """Tell a store that was just opened, before anything is submitted to it."""
        self._tell(store, list(self._specs.values()))

    def _tell(self, store: Store, specs: Sequence[ProviderSpec]) -> None:
        """Wait until it is written, one commit for all: who looks at a provider after this finds it."""
        for spec, ack in [(spec, store.declare_provider(spec)) for spec in specs]:
            try:
                ack.wait()
            except StoreError as error:
                _log.error("declaring provider %r failed: %s", spec.name, error)

    @property
    def has_clients(self) -> bool:
        """True when a client may be open."""
        return bool(self._pools)

    async def close(self) -> None:
        """Close the clients: those that nobody uses now, the others when their last user leaves; the next use makes new ones.

        One that does not close does not keep what comes after it from being stopped: the log has it.
        """
        with self._lock:
            pools, self._pools = self._pools, {}
        for name, pool in pools.items():
            try:
                await pool.close()
            except Exception:  # noqa: BLE001 - of whatever kind: a client is anybody's code
                _log.exception("a client of provider %r did not close", name)


def _fallbacks(name: str, given: Sequence[Provider | str]) -> tuple[str, ...]:
    if isinstance(given, (str, Provider)):
        raise SettingsError(f"fallbacks={given!r} of provider {name!r} is no list", fix="write fallbacks=[…]")
    if not all(isinstance(fallback, (str, Provider)) for fallback in given):
        raise SettingsError(f"fallbacks={given!r} of provider {name!r} are not all providers or names")
    names = tuple(fallback if isinstance(fallback, str) else fallback.name for fallback in given)
    for fallback in names:
        if checked_provider_name(split_name(fallback)[0]) == name:
            raise SettingsError(f"provider {name!r} cannot stand in for itself", fix="leave it out of fallbacks")
    return names


def _models(name: str, given: object) -> dict[str, Rates]:
    if not isinstance(given, Mapping) or not all(isinstance(model, str) and model for model in given):
        raise SettingsError(
            f"models={given!r} of provider {name!r} is no mapping of models", fix='for example {"opus": {"rpm": 50}}'
        )
    return {model: _rates(f"{name}/{model}", rates) for model, rates in given.items()}


def _rates(name: str, values: Rates | Mapping[str, int]) -> Rates:
    if not isinstance(values, (Rates, Mapping)):
        raise SettingsError(f"the bounds of provider {name!r} are {values!r}", fix="give a mapping, or Rates(rpm=…)")
    try:
        rates = msgspec.convert(
            msgspec.structs.asdict(values) if isinstance(values, Rates) else dict(values), Rates, strict=True
        )
    except msgspec.ValidationError as error:
        raise SettingsError(f"the bounds of provider {name!r} are wrong: {error}") from None
    unknown = set() if isinstance(values, Rates) else set(values) - set(Rates.__struct_fields__)
    wrong = [field for field in Rates.__struct_fields__ if not 0 <= getattr(rates, field) <= BOUND_MAX]
    if unknown or wrong:
        raise SettingsError(
            f"the bounds of provider {name!r} are wrong: {', '.join(sorted([*unknown, *wrong]))}",
            fix=f"it takes {', '.join(Rates.__struct_fields__)}; each is 0 to {BOUND_MAX:,}, and 0 is no bound",
        )
    return rates
