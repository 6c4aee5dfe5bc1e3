"""`sennit config`: the settings in force, and who said so."""

from __future__ import annotations

import dataclasses
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from sennit.cli.group import Group
from sennit.cli.output import emit, table
from sennit.cli.shared import Shared, pass_shared, shared_options
from sennit.errors import SettingsError
from sennit.model.settings import Settings
from sennit.runtime.config import Loaded, load


@click.group(cls=Group, invoke_without_command=True)
@shared_options()
@click.pass_context
def config(ctx: click.Context) -> None:
    """Show the settings in force; alone it means `show`.

    A setting comes from the keywords of App, SENNIT_* in the environment, the nearest sennit.toml, [tool.sennit] of
    the nearest pyproject.toml, the profile, or its default, in this order. An app's own keywords are not visible here.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(show)


def _here() -> Loaded:
    return load({}, environ=os.environ, folder=Path.cwd())


@config.command()
@click.option("--origin", is_flag=True, help="Also where each value comes from.")
@shared_options()
@pass_shared
def show(shared: Shared, *, origin: bool = False) -> None:
    """List every setting with its value."""
    loaded = _here()
    knobs = [
        (f.name, getattr(loaded.settings, f.name), f.metadata["unit"], loaded.origins[f.name])
        for f in dataclasses.fields(Settings)
    ]
    if shared.json:
        for name, value, unit, where in knobs:
            line: dict[str, Any] = {
                "schema": "sennit.setting/1",
                "name": name,
                "value": value,
                "unit": unit,
                "origin": where,
            }
            emit(line)
    elif origin:
        table(["setting", "value", "unit", "origin"], knobs)
    else:
        table(["setting", "value", "unit"], [knob[:3] for knob in knobs])


@config.command()
@click.argument("name")
@shared_options()
@pass_shared
def get(shared: Shared, name: str) -> None:
    """Print the value of one setting."""
    loaded = _here()
    if name not in loaded.origins:
        near = get_close_matches(name, loaded.origins, n=1)
        raise SettingsError(
            f"there is no setting {name!r}", fix=f"did you mean {near[0]!r}?" if near else "see `sennit config show`"
        )
    value = getattr(loaded.settings, name)
    if shared.json:
        emit({"schema": "sennit.setting/1", "name": name, "value": value, "origin": loaded.origins[name]})
    else:
        click.echo(value)


@config.command()
@shared_options()
@pass_shared
def path(shared: Shared) -> None:
    """Print the files that settings come from, one per line."""
    files = sorted({origin for origin in _here().origins.values() if origin.endswith(".toml")})
    for file in files:
        if shared.json:
            emit({"schema": "sennit.path/1", "path": file})
        else:
            click.echo(file)
    if not files and shared.verbosity >= 0:
        click.echo(f"no sennit.toml or [tool.sennit] sets anything for {Path.cwd()}", err=True)
