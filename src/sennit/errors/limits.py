"""Providers, breakers and budgets."""

from __future__ import annotations

from typing import Final

from sennit.errors.base import SennitError

_BUSY: Final = {
    "limit": "as many are under way as it bears (limit)",
    "rate": "this minute's rate is used up (rate)",
    "pause": "it is paused (pause)",
    "breaker": "its breaker is open (breaker)",
    "budget": "a budget is spent (budget)",
}


class LimitError(SennitError):
    """A call may not be made now; `provider` says to whom."""

    code = "S340"

    def __init__(self, what: str, *, provider: str, why: str = "", fix: str = "") -> None:
        super().__init__(what, why=why, fix=fix)
        self.provider = provider


class ProviderNotFound(LimitError, LookupError):
    """No provider with this name has been declared in this store."""

    code = "S341"
    exit_code = 3

    def __init__(self, provider: str) -> None:
        super().__init__(
            f"no provider {provider!r} in this store",
            provider=provider,
            fix="see `sennit providers ls`; app.provider(name, …) or `sennit providers set NAME --new` declares one",
        )


class ProviderBusy(LimitError):
    """The provider has no room, and the caller did not want to wait. `retry_after_s` says when to come back.

    Attributes:
        reason: `limit`, `rate`, `pause`, `breaker` or `budget`.
    """

    code = "S342"
    exit_code = 75

    def __init__(self, provider: str, *, reason: str, retry_after_s: float) -> None:
        super().__init__(
            f"provider {provider!r} takes no further call now: {_BUSY.get(reason, reason)}",
            provider=provider,
            why=f"likely to change in {_seconds(retry_after_s)} s",
            fix="wait for it (leave wait=False out), or name fallbacks",
        )
        self.reason = reason
        self.retry_after_s = retry_after_s


class CircuitOpen(LimitError):
    """Too many calls have failed, and none is made until `retry_after_s` has passed."""

    code = "S343"
    exit_code = 75

    def __init__(self, provider: str, *, retry_after_s: float) -> None:
        super().__init__(
            f"the breaker of {provider!r} is open for another {_seconds(retry_after_s)} s",
            provider=provider,
            why="too many of the last calls have failed",
            fix="wait, or close it by hand: reset()",
        )
        self.retry_after_s = retry_after_s


class BudgetExceeded(LimitError):
    """What a budget allows is spent; nothing more is begun.

    Attributes:
        scope, key: whose budget: `fleet`, `provider`, `handler`, `thread` or `task`, and its name.
        spent, allowed: in `unit`, which is `tokens` or `USD`.
        on_exceeded: `fail`, or `ask` a person for more.
        bounds: both bounds of the budget, in tokens and nano-dollars; 0 is none.
    """

    code = "S344"

    def __init__(
        self,
        provider: str,
        *,
        scope: str,
        key: str,
        unit: str,
        spent: float,
        allowed: float,
        on_exceeded: str = "fail",
        bounds: tuple[int, int] = (0, 0),
    ) -> None:
        whose = f"{scope} {key!r}" if key else f"the {scope}"
        super().__init__(
            f"the budget of {whose} is spent: {_amount(spent)} of {_amount(allowed)} {unit}",
            provider=provider,
            why="calls that are on their way are counted when they end, so it may be a little more",
            fix="raise it: `sennit providers budget` or app.budget(…); then `sennit tasks retry`",
        )
        self.scope = scope
        self.key = key
        self.unit = unit
        self.spent = spent
        self.allowed = allowed
        self.on_exceeded = on_exceeded
        self.bounds = bounds


def _amount(number: float) -> str:
    """Return a number for people: four decimals, more only below a cent, never 3e-05."""
    return f"{number:,.{4 if number >= 0.01 else 9}f}".rstrip("0").rstrip(".")


def _seconds(number: float) -> str:
    return f"{max(number, 0.1):,.1f}".removesuffix(".0")


class PermitLost(LimitError):
    """The permit is not ours any more: its process was taken for dead. The call may have been made beyond the limit."""

    code = "S345"

    def __init__(self, provider: str) -> None:
        super().__init__(
            f"the permit for {provider!r} was taken back",
            provider=provider,
            why="this process was frozen longer than its lease",
        )
