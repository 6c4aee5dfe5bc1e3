"""`sennit providers`: who answers model calls, what is known of them, and steering them by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import click
import msgspec

from sennit.cli.budgets import budget
from sennit.cli.group import Group
from sennit.cli.opening import existing, settings_here
from sennit.cli.output import emit, moment, rfc3339, safe, span, table
from sennit.cli.provider_view import HEAD, RIGHT, count, in_full, provider_json, row, state_words
from sennit.cli.seconds import Seconds
from sennit.cli.shared import Shared, examples, pass_shared, shared_options
from sennit.errors import LimitError, ProviderNotFound, SettingsError
from sennit.limit.breaker import checked_spec
from sennit.model.order import Priority
from sennit.model.provider import (
    STRATEGIES,
    BreakerSpec,
    Permit,
    PermitRequest,
    ProviderSpec,
    ProviderView,
    Rates,
    checked_provider_name,
    split_name,
)
from sennit.store.protocol import Store
from sennit.store.protocol_providers import Steer
from sennit.sync.clock import monotonic_s

BOUND_MAX: Final = 1_000_000_000
PAUSE_S_MAX: Final = 366 * 86_400.0
_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


class ProviderInUse(LimitError):
    """It is called just now, or something waits for it."""

    exit_code = 4


class NoPermit(LimitError, TimeoutError):
    """There was none in time."""

    exit_code = 124


class Duration(click.ParamType[float]):
    """`90`, `90s`, `10m`, `1h30m`, `2d`, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        text = str(value)
        seconds = -1.0
        if _DURATION.fullmatch(text):
            seconds = sum(float(n) * _UNITS_S[unit] for n, unit in _PART.findall(text))
        elif re.fullmatch(r"\d+(\.\d+)?", text):
            seconds = float(text)
        if not 0 < seconds <= PAUSE_S_MAX:
            self.fail(f"{value!r} is no time such as 90s, 10m, 1h30m or 2d, of at most a year", param, ctx)
        return seconds


class Pairs(click.ParamType[Any]):
    """`a=1,b=2.5`, as a dict of numbers; which names there are depends on the option."""

    name = "pairs"

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, float]:
        """Return name → number."""
        if isinstance(value, dict):
            return value
        found: dict[str, float] = {}
        for pair in filter(None, str(value).split(",")):
            name, _, number = pair.partition("=")
            if name not in self._names or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", number):
                names = ", ".join(self._names)
                self.fail(f"{pair!r} is not NAME=NUMBER, where NAME is one of {names}", param, ctx)
            found[name] = float(number)
        return found


class ModelBounds(Pairs):
    """`opus:parallel=2,tpm=40000`."""

    name = "model"

    def __init__(self) -> None:
        super().__init__(Rates.__struct_fields__)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return (model, bounds)."""
        if isinstance(value, tuple):
            return value
        model, colon, pairs = str(value).rpartition(":")
        if not model or not colon:
            self.fail(f"{value!r} is not MODEL:NAME=NUMBER,…", param, ctx)
        given = super().convert(pairs, param, ctx)
        if not all(number.is_integer() for number in given.values()):
            self.fail(f"{value!r}: bounds are whole numbers", param, ctx)
        return model, Rates(**{name: int(number) for name, number in given.items()})


def _checked(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        return checked_provider_name(value)
    except SettingsError as error:
        said = f"{error.what}: {error.why}".encode(errors="backslashreplace").decode()
        raise click.BadParameter(said, ctx=ctx, param=parameter) from None


def _checked_with_model(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    _checked(ctx, parameter, split_name(value)[0])
    return value


name_argument = click.argument("name", callback=_checked, metavar="NAME")
bound = click.IntRange(0, BOUND_MAX)


@click.group(cls=Group, invoke_without_command=True)
@shared_options()
@click.pass_context
def providers(ctx: click.Context) -> None:
    """Providers of model calls: limits, rates, pauses, breakers, budgets; alone it means `ls`."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(ls)


providers.add_command(budget)


# ---------------------------------------------------------------- looking


@providers.command(epilog=examples("sennit providers ls --json | jq -r 'select(.state != \"open\") | .name'"))
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at most.")
@shared_options()
@pass_shared
def ls(shared: Shared, *, limit: int = 100) -> None:
    """List providers: what they allow now, what is in use, how many calls and tasks wait, and why."""
    with existing(shared.url) as store:
        found = store.providers().result()
        now_us = store.now_us()
    shown = found[:limit]
    if shared.json:
        for view in shown:
            emit(provider_json(view))
    elif shown:
        table(HEAD, [row(view, now_us) for view in shown], right=RIGHT)
    else:
        click.echo("no provider has been declared: app.provider(name, …) or `sennit providers set NAME --new`")
    if len(shown) < len(found):
        click.echo(f"{len(shown):,} of {len(found):,}; more with --limit", err=True)


@providers.command(epilog=examples("sennit providers get anthropic"))
@name_argument
@shared_options()
@pass_shared
def get(shared: Shared, name: str) -> None:
    """Show one provider: its bounds, its state, what was called and what that cost."""
    with existing(shared.url) as store:
        view = _one(store, name)
        _print(shared, store, view)


def _one(store: Store, name: str) -> ProviderView:
    return store.providers([name]).result()[0]


def _print(shared: Shared, store: Store, view: ProviderView) -> None:
    if shared.json:
        emit(provider_json(view))
    else:
        click.echo("\n".join(in_full(view, store.now_us())))


# ---------------------------------------------------------------- declaring


@providers.command(
    "set",
    epilog=examples(
        "sennit providers set anthropic --parallel 20 --rpm 2000",
        "sennit providers set anthropic --model opus:parallel=2,tpm=40000 --fallback openai",
        "sennit providers set ollama --new --singleton",
    ),
)
@name_argument
@click.option("--new", is_flag=True, help="Declare it if it is not known; else that is an error.")
@click.option("--parallel", type=click.IntRange(1, BOUND_MAX), help="Calls at once, the ceiling.")
@click.option("--rpm", type=bound, help="Requests per minute; 0 is no bound.")
@click.option("--tpm", type=bound, help="Tokens per minute, input and output.")
@click.option("--input-tpm", type=bound, help="Input tokens per minute.")
@click.option("--output-tpm", type=bound, help="Output tokens per minute.")
@click.option("--model", "models", multiple=True, type=ModelBounds(), metavar="MODEL:NAME=N,…",
              help="Sub-limits of a model, as above; MODEL: without any lifts them. May be repeated.")  # fmt: skip
@click.option("--strategy", type=click.Choice(STRATEGIES), help="How the limit moves below the ceiling.")
@click.option("--singleton/--no-singleton", default=None, help="A local server that answers one call at a time.")
@click.option("--breaker", type=Pairs(BreakerSpec.__struct_fields__), metavar="NAME=N,…",
              help="When calls are refused because too many failed: failures=5,open_s=60 …")  # fmt: skip
@click.option("--no-breaker", is_flag=True, help="Never refuse calls because others failed.")
@click.option("--fallback", "fallbacks", multiple=True, metavar="NAME",
              help="Stands in while it is paused or its breaker open; the list replaces the old one.")  # fmt: skip
@click.option("--no-fallbacks", is_flag=True, help="Nobody stands in.")
@click.option("--idle-s", type=Seconds(), help="A shared client is closed when unused so long.")
@shared_options()
@pass_shared
def set_(
    shared: Shared, /, name: str, *, new: bool, models: Sequence[tuple[str, Rates]], no_breaker: bool, no_fallbacks: bool,
    fallbacks: Sequence[str], breaker: dict[str, float] | None, **given: Any,
) -> None:  # fmt: skip
    """Change the bounds of a provider, for all processes, also for what waits already. What is not named stays.

    The last declaration stands: a program that declares this provider sets its own bounds again when it starts.
    """
    if breaker is not None and no_breaker:
        raise click.UsageError("--breaker and --no-breaker exclude each other")
    if fallbacks and no_fallbacks:
        raise click.UsageError("--fallback and --no-fallbacks exclude each other")
    for fallback in fallbacks:
        if split_name(checked_provider_name(split_name(fallback)[0]))[0] == name:
            raise click.UsageError(f"{name!r} cannot stand in for itself")
    with existing(shared.url) as store:
        spec = _known(store, name, new=new)
        changes = {field: value for field, value in given.items() if value is not None}
        rates = {field: changes.pop(field) for field in Rates.__struct_fields__ if field in changes}
        if no_breaker:
            changes["breaker"] = None
        elif breaker is not None:
            changes["breaker"] = _changed_breaker(spec.breaker, breaker)
        if fallbacks or no_fallbacks:
            changes["fallbacks"] = tuple(fallbacks)
        own = dict(spec.models) | dict(models)
        changed = msgspec.structs.replace(
            spec, rates=msgspec.structs.replace(spec.rates, **rates),
            models={model: bounds for model, bounds in own.items() if bounds != Rates()}, **changes,
        )  # fmt: skip
        _print(shared, store, store.declare_provider(changed).result())


def _known(store: Store, name: str, *, new: bool) -> ProviderSpec:
    try:
        return _one(store, name).spec
    except ProviderNotFound:
        if not new:
            raise
    return ProviderSpec(name=name, rates=Rates(parallel=settings_here().provider_parallel))


def _changed_breaker(spec: BreakerSpec | None, given: dict[str, float]) -> BreakerSpec:
    """Return a breaker with these values; counts are whole numbers."""
    before = spec or BreakerSpec()
    counts = {name for name in given if isinstance(getattr(BreakerSpec(), name), int)}
    values = {name: int(n) if name in counts and n.is_integer() else n for name, n in given.items()}
    try:
        return checked_spec(msgspec.structs.replace(before, **values))
    except SettingsError as error:
        raise click.UsageError(": ".join(filter(None, [error.what, error.why]))) from None


@providers.command(epilog=examples("sennit providers forget anthropc"))
@name_argument
@shared_options()
@pass_shared
def forget(shared: Shared, name: str) -> None:
    """Delete a provider and what was learnt of it. Exit 4 while it is in use or something waits for it."""
    with existing(shared.url) as store:
        view = _one(store, name)
        if not store.forget_provider(name).result():
            raise ProviderInUse(
                f"provider {name!r} was not forgotten",
                provider=name,
                why=f"{count(view.in_use, 'call')} under way, {count(view.waiting, 'call')} and {count(view.ready, 'task')} wait",
                fix="let them end, or cancel those tasks: `sennit tasks ls --state ready`",
            )
    if shared.json:
        emit({"schema": "sennit.forgotten_provider/1", "name": name, "forgotten": True})
    else:
        click.echo(safe(f"{name} is forgotten"))


# ---------------------------------------------------------------- steering


@providers.command(epilog=examples("sennit providers trip anthropic"))
@name_argument
@shared_options()
@pass_shared
def trip(shared: Shared, name: str) -> None:
    """Let no call through until `reset`, as if its breaker had opened for good; fallbacks stand in."""
    _steer(shared, name, "isolate")


@providers.command(epilog=examples("sennit providers pause anthropic --for 10m"))
@name_argument
@click.option("--for", "seconds", type=Duration(), required=True, help="Such as 90s, 10m, 1h30m, 2d.")
@shared_options()
@pass_shared
def pause(shared: Shared, name: str, *, seconds: float) -> None:
    """Let no call through for so long; then one probes, and the others follow step by step. Tasks wait without a slot."""
    _steer(shared, name, "pause", seconds)


@providers.command(epilog=examples("sennit providers reset anthropic"))
@name_argument
@shared_options()
@pass_shared
def reset(shared: Shared, name: str) -> None:
    """Lift pause and isolation, close the breaker, and let the limit begin anew."""
    _steer(shared, name, "reset")


def _steer(shared: Shared, name: str, how: Steer, seconds: float | None = None) -> None:
    with existing(shared.url) as store:
        until_us = None if seconds is None else store.now_us() + int(seconds * 1_000_000)
        view = store.steer_provider(name, how, until_us=until_us).result()
        if shared.json:
            emit(provider_json(view))
        else:
            click.echo(safe(f"{name} is {state_words(view, store.now_us())}; {count(view.in_use, 'call')} under way"))


# ---------------------------------------------------------------- trying


@providers.command(
    epilog=examples("sennit providers test anthropic", "sennit providers test anthropic/opus --timeout-s 60 --json")
)
@click.argument("name", callback=_checked_with_model, metavar="NAME[/MODEL]")
@click.option("--tokens", type=bound, default=0, help="Reserve so many, as a call would.")
@click.option("--timeout-s", type=Seconds(), default=10.0, show_default=True,
              help="Exit 124 after this long.")  # fmt: skip
@shared_options()
@pass_shared
def test(shared: Shared, name: str, *, tokens: int, timeout_s: float) -> None:
    """Wait for one permit as a call would, say how long that took and why, and give it back. Nothing is sent."""
    with existing(shared.url) as store:
        _one(store, split_name(name)[0])  # one that is not known is an error here, and not declared by its first use
        request = PermitRequest(id=store.take_ids(1)[0], provider=name, priority=Priority.NORMAL, tokens=tokens)
        begun_s = monotonic_s()
        asked = store.take_permit(request)
        permit: Permit | None = None
        try:
            with suppress(TimeoutError):
                permit = asked.result(timeout_s)
        finally:
            # Also after Ctrl-C. It may have been granted in this very moment.
            store.return_permit(request.id).wait()
        if permit is None:
            raise _too_late(store, name, timeout_s)
        _print_permit(shared, permit, monotonic_s() - begun_s, store.now_us())


def _too_late(store: Store, name: str, timeout_s: float) -> NoPermit:
    view, now_us = _one(store, split_name(name)[0]), store.now_us()
    ahead = f"{count(view.waiting, 'call')} and {count(view.ready, 'task')} wait"
    return NoPermit(
        f"no permit for {name!r} within {timeout_s:g} s",
        provider=view.spec.name,
        why=f"{view.spec.name} is {state_words(view, now_us)}; {count(view.in_use, 'call')} under way, {ahead}",
        fix=f"wait longer with --timeout-s; `sennit providers get {view.spec.name}` says more",
    )


def _print_permit(shared: Shared, permit: Permit, took_s: float, now_us: int) -> None:
    if shared.json:
        emit(
            {
                "schema": "sennit.permit/1",
                "provider": permit.provider,
                "model": permit.model,
                "fallback_for": permit.fallback_for,
                "is_probe": permit.is_probe,
                "waited_s": permit.waited_us / 1e6,
                "reason": permit.reason,
                "took_s": round(took_s, 6),
                "granted_at": rfc3339(permit.granted_us),
            }
        )
        return
    which = f"{permit.provider}/{permit.model}" if permit.model else permit.provider
    instead = f" instead of {permit.fallback_for}" if permit.fallback_for else ""
    why = f" after {span(permit.waited_us / 1e6)} ({permit.reason})" if permit.reason else f" in {took_s * 1e3:.1f} ms"
    click.echo(safe(f"{which} let a call through{instead}{why}, at {moment(permit.granted_us, now_us)}"))
