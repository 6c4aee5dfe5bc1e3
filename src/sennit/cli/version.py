"""`sennit version`: what a bug report should say."""

from __future__ import annotations

import platform
from importlib.metadata import version as version_of
from typing import Final

import click

from sennit._version import __version__
from sennit.cli.doctor import sqlite_facts
from sennit.cli.output import emit
from sennit.cli.shared import Shared, pass_shared, shared_options

LIBRARIES: Final = ("click", "cronsim", "msgspec", "psutil")


@click.command()
@shared_options()
@pass_shared
def version(shared: Shared) -> None:
    """Print the versions of sennit and of what it stands on."""
    facts = {
        "sennit": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite_facts()[0],
        "platform": platform.platform(),
        **{name: version_of(name) for name in LIBRARIES},
    }
    if shared.json:
        emit({"schema": "sennit.version/1", **facts})
    else:
        for name, value in facts.items():
            click.echo(f"{name:<10} {value}")
