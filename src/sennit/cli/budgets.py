"""`sennit providers budget`: what may be spent, and what is spent of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, Final, get_args

import click
import msgspec

from sennit.cli.opening import existing
from sennit.cli.output import clipped, emit, safe, table
from sennit.cli.provider_view import unpriced, usd
from sennit.cli.shared import Shared, examples, pass_shared, shared_options
from sennit.errors import SettingsError
from sennit.model.provider import NANO, TOKENS_MAX, USD_MAX, Budget, BudgetScope, BudgetView, checked_provider_name

SCOPES: Final[tuple[BudgetScope, ...]] = get_args(BudgetScope)
# Those of which there are many: without a key the bound is for each of them.
PLURAL: Final = {"handler": "each handler", "thread": "each thread", "task": "each task"}


@click.command(
    epilog=examples(
        "sennit providers budget                                    all of them, and what is spent",
        "sennit providers budget fleet --usd 20 --ask",
        "sennit providers budget thread --tokens 200000             each thread",
        "sennit providers budget handler fleet.review --usd 5",
        "sennit providers budget fleet --lift",
    )
)
@click.argument("scope", type=click.Choice(SCOPES), required=False)
@click.argument("key", required=False, default="")
@click.option(
    "--usd",
    type=click.FloatRange(0, USD_MAX),
    help="By the price table, in which a model without a price costs nothing; 0 is no bound.",
)
@click.option("--tokens", type=click.IntRange(0, TOKENS_MAX), help="Input and output together; 0 is no bound.")
@click.option("--ask/--fail", "ask", default=None,
              help="What becomes of an attempt that would spend more: a person is asked to raise the bound, or it fails. "
              "A new budget fails.")  # fmt: skip
@click.option("--lift", is_flag=True, help="Remove the bounds.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at most are listed.")
@shared_options()
@pass_shared
def budget(
    shared: Shared, scope: BudgetScope | None, key: str, *, usd: float | None, tokens: int | None, ask: bool | None,
    lift: bool, limit: int,
) -> None:  # fmt: skip
    """List budgets, or set one: of the fleet, or of a provider, handler, thread or task by its name or id.

    Without a KEY the bound is for each handler, thread or task. What was spent stays, and what is not named stays.
    Tasks that were suspended because it was spent go on when it is not any more.
    """
    changes = usd is not None or tokens is not None or ask is not None or lift
    if usd is not None and not isfinite(usd):
        raise click.UsageError(f"--usd {usd} is no amount")
    if lift and (usd is not None or tokens is not None or ask is not None):
        raise click.UsageError("--lift removes the bounds; it goes with no other")
    _check_names(scope, key, changes=changes)
    with existing(shared.url) as store:
        if scope is None or not changes:
            found = [view for view in store.budgets(scope).result() if key in ("", view.budget.key)]
        else:
            before = [view for view in store.budgets(scope).result() if view.budget.key == key]
            if lift:
                wanted = Budget(scope=scope, key=key)
            else:
                known = before[0].budget if before else Budget(scope=scope, key=key)
                wanted = _changed(known, usd, tokens, ask)
            found = [store.set_budget(wanted).result()]
    if lift and not shared.json:
        click.echo(f"the budget of {whose(found[0].budget)} is lifted")
    else:
        _print(shared, found, limit)


def _check_names(scope: BudgetScope | None, key: str, *, changes: bool) -> None:
    if scope is None and changes:
        raise click.UsageError(f"whose budget? One of {', '.join(SCOPES)}")
    if scope == "fleet" and key:
        raise click.UsageError("the fleet is one: its budget has no KEY")
    if scope == "provider" and changes and not key:
        raise click.UsageError("of which provider? Its name is missing")
    if scope == "provider" and key:
        try:
            checked_provider_name(key)
        except SettingsError as error:
            raise click.UsageError(f"{error.what}: {error.why}") from None
    if scope == "task" and key and not key.isdecimal():
        raise click.UsageError(f"{key!r} is no id of a task")


def _changed(known: Budget, usd: float | None, tokens: int | None, ask: bool | None) -> Budget:  # noqa: FBT001 - three-valued
    changes: dict[str, Any] = {}
    if usd is not None:
        changes["cost_nano_max"] = max(round(usd * NANO), int(usd > 0))  # so little is not "no bound"
    if tokens is not None:
        changes["tokens_max"] = tokens
    if ask is not None:
        changes["on_exceeded"] = "ask" if ask else "fail"
    changed = msgspec.structs.replace(known, **changes)
    if not (changed.tokens_max or changed.cost_nano_max) and ask is not None:
        raise click.UsageError("a budget needs a bound: --usd or --tokens")
    return changed


def _print(shared: Shared, found: Sequence[BudgetView], limit: int) -> None:
    shown = sorted(found, key=lambda view: not view.is_exceeded)[:limit]  # those that hold something back come first
    if shared.json:
        for view in shown:
            emit(budget_json(view))
    elif shown:
        rows = [
            [clipped(whose(view.budget), 60), *spent_words(view), view.budget.on_exceeded,
             "spent" if view.is_exceeded else ""]
            for view in shown
        ]  # fmt: skip
        table(["budget", "cost", "tokens", "then", ""], rows, right=frozenset({"cost", "tokens"}))
    else:
        click.echo("no budget is set")
    if len(shown) < len(found):
        click.echo(f"{len(shown):,} of {len(found):,}; more with --limit", err=True)


def whose(budget: Budget) -> str:
    """Return what a budget is of, for people."""
    if budget.key:
        return safe(f"{budget.scope} {budget.key}")
    return PLURAL.get(budget.scope, str(budget.scope))


def spent_words(view: BudgetView) -> tuple[str, str]:
    """Return what is spent in money and in tokens; of what, if that is bounded, and whether the bound means anything."""
    b = view.budget
    bound = f" of {usd(b.cost_nano_max)}{unpriced(view.cost_nano, view.tokens)}" if b.cost_nano_max else ""
    return usd(view.cost_nano) + bound, f"{view.tokens:,}{f' of {b.tokens_max:,}' if b.tokens_max else ''}"


def budget_json(view: BudgetView) -> dict[str, Any]:
    """Return the keys of `sennit.budget/1`; a bound of 0 is none."""
    b = view.budget
    return {
        "schema": "sennit.budget/1",
        "scope": b.scope,
        "key": b.key,
        "usd_max": b.cost_nano_max / NANO,
        "tokens_max": b.tokens_max,
        "usd": view.cost_nano / NANO,
        "tokens": view.tokens,
        "on_exceeded": b.on_exceeded,
        "exceeded": view.is_exceeded,
    }
