"""What every command accepts, before or after its name: `--db --json -q -v --no-color`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from sennit.cli.console import LogLines

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Shared:
    """The shared options of one command line.

    Attributes:
        db: the URL given with `--db`, or None.
        verbosity: -1 quiet, 0, 1 verbose.
        color: False never; None as the terminal says.
    """

    environment_db: str | None = None
    db: str | None = None
    json: bool = False
    verbosity: int = 0
    color: bool | None = None
    log_lines: LogLines | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Shared:
        """Read SENNIT_DB, SENNIT_JSON and NO_COLOR (https://no-color.org: any non-empty value)."""
        return cls(
            environment_db=environ.get("SENNIT_DB") or None,
            json=environ.get("SENNIT_JSON", "") not in {"", "0"},
            color=False if environ.get("NO_COLOR") else None,
        )

    @property
    def url(self) -> str:
        """The database of a command that has no app: `--db`, SENNIT_DB, or the default."""
        from sennit.runtime.stores import DEFAULT_URL

        return self.db or self.environment_db or DEFAULT_URL

    def start_logging(self, *, works: bool = False) -> None:
        """Send log records to stderr; a command that `works` shows and keeps those from INFO."""
        from sennit.cli.console import LogLines

        self.log_lines = LogLines(verbosity=self.verbosity, works=works)
        self.log_lines.start()

    def close(self) -> None:
        """Undo `start_logging`."""
        if self.log_lines is not None:
            self.log_lines.stop()


pass_shared = click.make_pass_decorator(Shared, ensure=True)


def _set(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Note an option in the one `Shared` of the command line; the later of two wins."""
    if not value:
        return
    shared = ctx.ensure_object(Shared)
    match parameter.name:
        case "quiet":
            shared.verbosity = -1
        case "verbose":
            shared.verbosity = 1
        case "no_color":
            shared.color = False
            ctx.color = False
        case "json":
            shared.json = True
        case _:
            shared.db = value


def checked_thread(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return the id of a conversation as it is; what none can be called is an error of the command line."""
    from sennit.errors import SettingsError
    from sennit.model.thread import checked_thread_id

    try:
        return value if value is None else checked_thread_id(value)
    except SettingsError as error:
        said = error.what.encode(errors="backslashreplace").decode()
        raise click.BadParameter(said, ctx=ctx, param=parameter) from None


def thread_option(function: F) -> F:
    """Add `--thread T`, a filter."""
    how: dict[str, Any] = {"metavar": "T", "callback": checked_thread, "help": "Only of this conversation."}
    return click.option("--thread", "--thread-id", "thread_id", **how)(function)


def examples(*lines: str) -> str:
    """Return the end of a command's help: command lines to copy."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)  # \b: click leaves the lines as they are


def shared_options(*, q_is_taken: bool = False) -> Callable[[F], F]:
    """Add the shared options to a command or group.

    Args:
        q_is_taken: `-q` means something else here (queues of a worker); `--quiet` stays.
    """
    quiet = ("--quiet",) if q_is_taken else ("-q", "--quiet")
    note: dict[str, Any] = {"callback": _set, "expose_value": False}
    options = [
        click.option("--db", metavar="URL", **note, help="The database; default: SENNIT_DB, else .sennit/sennit.db."),
        click.option("--json", is_flag=True, **note, help="Write JSON Lines."),
        click.option(*quiet, is_flag=True, **note, help="Only errors on stderr."),
        click.option("-v", "--verbose", is_flag=True, **note, help="Debug log and tracebacks on stderr."),
        click.option("--no-color", is_flag=True, **note, help="No colour; NO_COLOR does the same."),
    ]

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add
