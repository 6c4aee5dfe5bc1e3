"""`sennit mcp`: a server of the Model Context Protocol, through which agents of any kind take tasks.

    claude mcp add sennit -- sennit mcp --db sqlite:///fleet.db        stdin and stdout: one server per client
    sennit mcp --http 127.0.0.1:8789                                   one for many clients

With stdio, stdout belongs to the protocol from the first moment: what an app prints while it is imported goes to stderr.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import click

from sennit.cli.seconds import Seconds
from sennit.cli.shared import Shared, pass_shared, shared_options
from sennit.errors import SennitError, SettingsError
from sennit.model.retry import RetryPolicy

if TYPE_CHECKING:
    from sennit.integrations.mcp.door import Options
    from sennit.integrations.mcp.http import Address
    from sennit.integrations.mcp.stdio import Wire
    from sennit.model.settings import Settings
    from sennit.store.protocol import Store

TOKEN_VARIABLE: Final = "SENNIT_MCP_TOKEN"  # noqa: S105 - the name of it


@click.command()
@click.argument("target", metavar="[MODULE:APP]", required=False)
@click.option(
    "-q", "--queue", "queues", multiple=True, metavar="NAME", help="Agents take from these; default: external."
)
@click.option(
    "--http", metavar="HOST:PORT", help="Serve streamable HTTP there instead of stdin and stdout; 0 is a free port."
)
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME", help="With --http: a further name in Host headers."
)
@click.option(
    "--claim-lease-s",
    type=Seconds(),
    default=300.0,
    show_default=True,
    help="How long a client may say nothing of a claim.",
)
@click.option("--claims-max", type=click.IntRange(1), default=8, show_default=True, help="Tasks one client may hold.")
@click.option(
    "--waits-max", type=click.IntRange(1), default=4, show_default=True, help="Calls of one client that may wait."
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    help="What reserved paths are relative to; default: here.",
)
@shared_options(q_is_taken=True)
@pass_shared
def mcp(
    shared: Shared,
    target: str | None,
    *,
    queues: tuple[str, ...],
    http: str | None,
    hosts: tuple[str, ...],
    claim_lease_s: float,
    claims_max: int,
    waits_max: int,
    root: Path,
) -> int:
    """Let agents of any kind claim tasks, report, ask and lock, by the Model Context Protocol.

    With MODULE:APP its database and settings are used. Over HTTP each request carries `Authorization: Bearer TOKEN`: that of
    SENNIT_MCP_TOKEN, or one that is made at each start and shown on stderr.
    """
    from sennit.integrations.mcp.run import need_mcp, run

    need_mcp()
    from sennit.integrations.mcp.clients import Bounds
    from sennit.integrations.mcp.door import QUEUE, Options

    over = _wire() if http is None else _address(http, hosts)
    shared.start_logging(works=True)
    if shared.verbosity < 1:  # a line for each request says nothing that the tasks do not
        logging.getLogger("mcp").setLevel(logging.WARNING)
    options = Options(
        queues=queues or (QUEUE,),
        claim_lease_s=claim_lease_s,
        bounds=Bounds(claims_max=claims_max, waits_max=waits_max),
        root=root,
    )
    place = _place(shared, target)
    try:
        number = run(
            place.open,
            place.settings,
            options,
            over=over,
            policy=place.policy,
            listening=partial(_say, shared, place.url, options, over),
        )
    except OSError as error:
        if http is None or isinstance(error, SennitError):
            raise
        raise SettingsError(
            f"the MCP server cannot listen on {http}", why=str(error), fix="choose another port, 0 takes a free one"
        ) from error
    return 128 + number if number else 0


def _wire() -> Wire:
    from sennit.integrations.mcp.stdio import Wire

    return Wire.take()


def _address(http: str, hosts: tuple[str, ...]) -> Address:
    from sennit.integrations.mcp.http import Address

    return Address.parse(http, token=os.environ.get(TOKEN_VARIABLE, ""), hosts=hosts)


class _Place:
    """Which database, with which settings."""

    def __init__(self, url: str, settings: Settings, policy: Callable[[str], RetryPolicy], *, works: bool) -> None:
        self.url = url
        self.settings = settings
        self.policy = policy
        self._works = works

    def open(self) -> Store:
        """Open the store."""
        from sennit.runtime.stores import open_store

        return open_store(self.url, self.settings, works=self._works)


def _place(shared: Shared, target: str | None) -> _Place:
    if target is None:
        from sennit.cli.opening import settings_here

        return _Place(shared.url, settings_here(), lambda _: RetryPolicy(), works=False)
    from sennit.cli.discover import load_app

    app = load_app(target)
    if shared.db is not None:
        app.use(shared.db)

    def policy(name: str) -> RetryPolicy:
        handler = app.registry.get(name)
        return RetryPolicy() if handler is None else handler.retry

    return _Place(app.url, app.settings, policy, works=True)


def _say(shared: Shared, url: str, options: Options, over: Wire | Address, http_url: str) -> None:
    from sennit.store.urls import without_password

    if shared.verbosity < 0:
        return
    queues = ", ".join(options.queues)
    where = http_url or "stdin and stdout"
    click.echo(f"sennit mcp serves {queues} of {without_password(url)} on {where}", err=True)
    if http_url and not os.environ.get(TOKEN_VARIABLE):
        click.echo(f"token: {cast('Address', over).token}", err=True)
