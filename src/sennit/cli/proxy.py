"""`sennit proxy`: the limits of the fleet in front of any framework, by its base URL.

sennit proxy --upstream openai=https://api.openai.com --upstream anthropic=https://api.anthropic.com
OPENAI_BASE_URL=http://127.0.0.1:8788/v1           ANTHROPIC_BASE_URL=http://127.0.0.1:8788/anthropic
"""

from __future__ import annotations

from typing import Final

import click

from sennit.cli.seconds import Seconds
from sennit.cli.shared import Shared, pass_shared, shared_options
from sennit.errors import SettingsError

PORT: Final = 8788


@click.command()
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    required=True,
    metavar="PROVIDER=URL",
    help="Whose limits, and its server without /v1; may be repeated.",
)
@click.option("--provider", default="", metavar="NAME", help="Whose are paths that begin with /v1; default: the first.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0 takes a free one.")
@click.option(
    "--wait-s",
    type=Seconds(or_zero=True),
    default=90.0,
    show_default=True,
    help="How long a request waits for a permit before it is answered 429.",
)
@click.option(
    "--idle-s",
    type=Seconds(),
    default=600.0,
    show_default=True,
    help="How long an upstream may send nothing.",
)
@click.option("--allow-remote", is_flag=True, help="Listen on an address that other machines reach.")
@shared_options()
@pass_shared
def proxy(
    shared: Shared,
    *,
    upstreams: tuple[str, ...],
    provider: str,
    host: str,
    port: int,
    wait_s: float,
    idle_s: float,
    allow_remote: bool,
) -> int:
    """Put the limits in front of any program that calls models: give it this proxy as its base URL.

    Requests pass as they are, keys included; none is kept. `/v1/…` goes to the default provider, `/NAME/v1/…` to that one.
    """
    from sennit.integrations.proxy import serve
    from sennit.runtime.app import App

    shared.start_logging(works=True)
    pairs = [_named(word) for word in upstreams]
    named = dict(pairs)
    if len(named) < len(pairs):
        raise SettingsError("two upstreams have the same name", fix="each provider has one server")
    app = App(shared.url)
    listens = False

    def listening(url: str) -> None:
        nonlocal listens
        listens = True
        click.echo(f"sennit proxy listens on {url} for {', '.join(named)}", err=True)

    try:
        number = serve(
            app.limits,
            named,
            host=host,
            port=port,
            default=provider,
            wait_s=wait_s,
            idle_s=idle_s,
            allow_remote=allow_remote,
            listening=listening,
        )
    except OSError as error:
        if listens:
            raise
        raise SettingsError(
            f"the proxy cannot listen on {host}:{port}", why=str(error), fix="choose another --port, 0 takes a free one"
        ) from error
    finally:
        app.close()
    return 128 + number


def _named(word: str) -> tuple[str, str]:
    """Read `provider=url`.

    Raises:
        SettingsError: it is not that.
    """
    name, equals, url = word.partition("=")
    if not name or not equals or not url:
        raise SettingsError(f"--upstream {word} is not PROVIDER=URL", fix="for example openai=https://api.openai.com")
    return name, url
