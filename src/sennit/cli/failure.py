"""How a command fails: `error[S401] what / why / fix` on stderr, a traceback only when asked or when it is a bug."""

from __future__ import annotations

import os
import tempfile
import traceback
from typing import Final

import click

from sennit.cli.output import safe_lines
from sennit.cli.shared import Shared
from sennit.errors import SennitError, TaskFailed, UsageError

BUG_EXIT: Final = 1


def report(error: Exception, shared: Shared) -> int:
    """Print an error and return the exit code for it."""
    match error:
        case click.ClickException():
            _say(shared, UsageError.code, error.format_message(), fix=_help_of(error))
            code = error.exit_code
        case SennitError():
            _say(shared, error.code, error.what, why=error.why, fix=error.fix)
            code = error.exit_code
        case _:
            place = _keep(error)
            what = f"unexpected {type(error).__name__}: {error}"
            _say(shared, SennitError.code, what, why="this is a bug; nothing stored is affected", fix=f"report {place}")
            code = BUG_EXIT
    if shared.verbosity > 0:
        if isinstance(error, TaskFailed) and error.remote_traceback:
            click.echo(error.remote_traceback.rstrip(), err=True)
        else:
            click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
    return code


def show(error: SennitError, shared: Shared) -> None:
    """Print an error that does not end the command."""
    _say(shared, error.code, error.what, why=error.why, fix=error.fix)


def _say(shared: Shared, code: str, what: str, *, why: str = "", fix: str = "") -> None:
    label = click.style(f"error[{code}]", fg="red", bold=True)
    lines = [f"{label} {safe_lines(what)}"]
    lines += [f"  {name:<4} {safe_lines(text)}" for name, text in (("why", why), ("fix", fix)) if text]
    click.echo("\n".join(lines), err=True, color=shared.color)


def _help_of(error: click.ClickException) -> str:
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    return f"see `{ctx.command_path} --help`" if ctx is not None else ""


def _keep(error: Exception) -> str:
    """Save the traceback of a bug, and return where."""
    descriptor, path = tempfile.mkstemp(prefix="sennit-error-", suffix=".txt")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    return path
