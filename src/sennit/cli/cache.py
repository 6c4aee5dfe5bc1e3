"""`sennit cache`: results that stand for later tasks."""

from __future__ import annotations

from collections.abc import Sequence

import click

from sennit.cli.group import Group
from sennit.cli.opening import existing
from sennit.cli.output import emit
from sennit.cli.shared import Shared, examples, pass_shared, shared_options


@click.group(cls=Group)
@shared_options()
def cache() -> None:
    """Cached results of tasks."""


@cache.command(epilog=examples("sennit cache invalidate --tag prices --tag stock"))
@click.option("--tag", "tags", multiple=True, required=True, metavar="T", help="As in cache_tags; may be repeated.")
@shared_options()
@pass_shared
def invalidate(shared: Shared, *, tags: Sequence[str]) -> None:
    """Forget the cached results that have one of these tags; the next such task runs. Open tasks go on."""
    with existing(shared.url) as store:
        forgotten = store.invalidate(tags=tags).result()
    if shared.json:
        emit({"schema": "sennit.invalidated/1", "tags": list(tags), "forgotten": forgotten})
    else:
        click.echo(f"{forgotten:,} cached result{'' if forgotten == 1 else 's'} forgotten")
