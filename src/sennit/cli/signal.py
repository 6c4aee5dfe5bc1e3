"""`sennit signal`: an event has come."""

from __future__ import annotations

import click
import msgspec

from sennit.cli.forms import text_of, value_of
from sennit.cli.opening import existing, settings_here
from sennit.cli.output import emit, safe
from sennit.cli.shared import Shared, examples, pass_shared, shared_options
from sennit.sync.plain import typed


@click.command(epilog=examples("sennit signal paid order-17 '{\"amount\": 12}'", 'sennit signal nightly "" now'))
@click.argument("name")
@click.argument("key", default="", required=False)
@click.argument("payload", default="null", required=False, metavar="[JSON]")
@shared_options()
@pass_shared
def signal(shared: Shared, name: str, key: str, payload: str) -> None:
    """Tell every task that waits for the event NAME with this KEY that it has come; print how many waited.

    When none does, it is kept for the next one that waits. What is not JSON is taken as text; - reads stdin.
    """
    name, key = (text.encode(errors="replace").decode() for text in (name, key))  # what is no Unicode names no event
    what, bytes_max = f"the payload of signal {name!r}", settings_here().payload_bytes_max
    data = typed(object).encode(value_of(text_of(payload), None), what, bytes_max)
    with existing(shared.url) as store:
        waited = store.signal(name, key, data).result()
    if shared.json:
        found = {"name": name, "key": key, "payload": msgspec.Raw(data), "waited": waited, "kept": not waited}
        emit({"schema": "sennit.signal/1", **found})
    else:
        told = "1 task goes on" if waited == 1 else f"{waited:,} tasks go on"
        click.echo(safe(f"{name} {key}".rstrip() + ": " + (told if waited else "nobody waits yet; kept for the next")))
