"""`sennit verify`: the promises, checked against the stored rows."""

from __future__ import annotations

import click

from sennit.cli.opening import existing
from sennit.cli.output import emit, ledger_json, ledger_line
from sennit.cli.shared import Shared, pass_shared, shared_options
from sennit.errors import StoreCorrupt
from sennit.model.task import Ledger

SHOWN_MAX = 100


@click.command()
@shared_options()
@pass_shared
def verify(shared: Shared) -> int:
    """Check every promise: the file is sound, every task is in one place, and the ledger balances.

    Works while workers run: it reads one snapshot. Exit 1 on any broken promise.
    """
    ledger: Ledger | None = None
    try:
        with existing(shared.url) as store:
            broken = store.verify().result()
            ledger = store.ledger().result()
    except StoreCorrupt as error:
        broken = [error.what]
    if ledger is not None and not ledger.balanced:
        broken.append(f"the ledger is out by {ledger.missing}")
    if shared.json:
        counts = None if ledger is None else ledger_json(ledger)
        emit({"schema": "sennit.verify/1", "sound": not broken, "broken": broken, "ledger": counts})
    else:
        _print(broken, ledger)
    return 1 if broken else 0


def _print(broken: list[str], ledger: Ledger | None) -> None:
    if ledger is not None:
        click.echo(f"ledger   {ledger_line(ledger)}")
        extra = f"retried {ledger.retried:,}, crashed {ledger.crashed:,}, refused {ledger.refused:,}, pruned {ledger.pruned:,}"
        click.echo(f"         {extra}")
    for sentence in broken[:SHOWN_MAX]:
        click.echo(f"✕ {sentence}")
    if len(broken) > SHOWN_MAX:
        click.echo(f"  and {len(broken) - SHOWN_MAX} more (--json has all)")
    click.echo("✓ every promise is kept" if not broken else f"✕ {len(broken)} broken")
