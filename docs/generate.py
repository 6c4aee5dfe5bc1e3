# ruff: noqa: INP001 - a script beside the pages it draws, not a package
"""Draws the tables of the reference from the code: settings, profiles, errors, states, priorities and commands.

    python docs/generate.py            write them into the pages
    python docs/generate.py --check    exit 1 and name the pages that are not current

A page keeps its own words; what stands between `<!-- drawn: NAME -->` and `<!-- end -->` is replaced. A page whose part
of the code cannot be imported is named, and left as it is.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import click

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "src"))

from sennit import errors  # noqa: E402 - the checkout's own package, installed or not
from sennit.model import lifecycle, order  # noqa: E402
from sennit.model.settings import PROFILES, Settings  # noqa: E402

_DRAWN = re.compile(r"(?P<open><!-- drawn: (?P<name>\w+) -->\n)(?P<body>.*?)(?P<close><!-- end -->)", re.DOTALL)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]) + "\n"


def cell(text: str) -> str:
    """Return text that may stand in a table: one line, no bars."""
    return " ".join(text.split()).replace("|", "\\|")


def first_paragraph(item: object) -> str:
    """Return the opening of a docstring, backticks as they are."""
    return cell((inspect.getdoc(item) or "").split("\n\n")[0])


# ---------------------------------------------------------------- settings


def settings() -> str:
    """Every knob with unit, default, bounds and reason."""
    rows = []
    for knob in fields(Settings):
        meta = knob.metadata
        bounds = ", ".join(f"`{choice}`" if choice else '`""`' for choice in meta["one_of"])
        if meta["low"] is not None:
            bounds = f"{meta['low']:,} to {meta['high']:,}"
        default = knob.default if knob.default != "" else '""'
        rows.append((f"`{knob.name}`", f"`{default}`", meta["unit"], bounds, cell(meta["reason"])))
    return table(("setting", "default", "unit", "bounds", "why"), rows)


def profiles() -> str:
    """What each profile sets."""
    names = [knob.name for knob in fields(Settings) if any(knob.name in values for values in PROFILES.values())]
    rows = [(f"`{profile}`", *(f"{values[name]:,}" for name in names)) for profile, values in PROFILES.items()]
    return table(("profile", *(f"`{name}`" for name in names)), rows)


# ---------------------------------------------------------------- errors


def error_classes() -> list[type[errors.SennitError]]:
    """Return every error of `sennit.errors` in the order of the tree."""

    def below(base: type[errors.SennitError]) -> Iterator[type[errors.SennitError]]:
        yield base
        for derived in base.__subclasses__():
            if derived.__module__ == errors.__name__:
                yield from below(derived)

    return list(below(errors.SennitError))


def error_tree() -> str:
    """The tree as it stands at the top of errors.py."""
    lines = (errors.__doc__ or "").splitlines()
    drawn = [line.removeprefix("    ") for line in lines if line.startswith("    ") or not line]
    return "```text\n" + "\n".join(drawn).strip() + "\n```\n"


def error_table() -> str:
    """Code, class, built-in, exit code and meaning of every error."""
    rows = []
    for error in error_classes():
        builtin = [base.__name__ for base in error.__mro__ if base.__module__ == "builtins"]
        also = "" if builtin[0] in {"Exception", "BaseException"} else f"`{builtin[0]}`"
        rows.append((f"`{error.code}`", f"`{error.__name__}`", also, str(error.exit_code), first_paragraph(error)))
    return table(("code", "error", "also a", "exit code", "meaning"), rows)


# ---------------------------------------------------------------- states and order


def state_table() -> str:
    """Every state, whether it is live, and the table that holds it."""
    rows = []
    for state in lifecycle.State:
        held = f"`sennit_{lifecycle.TABLES[state]}`" if state.live else "`sennit_task`, with `done_us`"
        rows.append((f"`{state}`", "live" if state.live else "ended", held))
    return table(("state", "", "held in"), rows)


def move_table() -> str:
    """Every move, grouped by what happens."""
    rows = []
    for event in lifecycle.Event:
        moves: dict[str, list[str]] = {}
        for (before, what), target in lifecycle.MOVES.items():
            if what is event:
                moves.setdefault(target, []).append(before)
        for after, befores in moves.items():
            from_all = set(befores) == {str(state) for state in lifecycle.LIVE}
            came_from = "any live state" if from_all else ", ".join(f"`{before}`" for before in befores)
            rows.append((f"`{event}`", came_from, f"`{after}`"))
    return table(("event", "from", "to"), rows)


def priority_table() -> str:
    """The head start of each priority."""
    urgent_us = order.HANDICAP_US[order.Priority.URGENT]
    rows = [
        (f"`{priority.name.lower()}`", f"{(handicap_us - urgent_us) / 1_000_000:g} s")
        for priority, handicap_us in order.HANDICAP_US.items()
    ]
    return table(("priority", "starts behind `urgent` by"), rows)


# ---------------------------------------------------------------- commands


def commands() -> str:
    """Every command with its synopsis and options, from click itself."""
    main = importlib.import_module("sennit.cli.main")
    return "\n".join(_sections(main.cli, "sennit"))


def _sections(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    if isinstance(command, click.Group):
        if command.invoke_without_command:  # it does something itself
            yield from _section(command, path, context)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from _sections(below, f"{path} {name}")
        return
    yield from _section(command, path, context)


def _section(command: click.Command, path: str, context: click.Context) -> Iterator[str]:
    usage = " ".join(piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]")
    yield f"### `{path}`\n"
    yield f"`{' '.join(filter(None, (path, usage)))}`\n"
    yield inspect.cleandoc(command.help or "").split("\f")[0].strip() + "\n"
    rows = [cells for option in command.params if (cells := _option(option, context)) is not None]
    if rows:
        yield table(("option", "meaning"), rows)


SHARED_OPTIONS = {"db", "json", "quiet", "verbose", "no_color"}


def _option(option: click.Parameter, context: click.Context) -> tuple[str, str] | None:
    """Return the row of an option; None for arguments, and for those that every command has."""
    if not isinstance(option, click.Option) or option.hidden or option.name in SHARED_OPTIONS:
        return None
    record = option.get_help_record(context)
    return None if record is None else (f"`{cell(record[0])}`", cell(record[1]))


def shared_options() -> str:
    """The options that every command takes."""
    main = importlib.import_module("sennit.cli.main")
    context = click.Context(main.cli, info_name="sennit")
    rows = []
    for option in main.cli.params:
        record = option.get_help_record(context) if option.name in SHARED_OPTIONS else None
        if record is not None:
            rows.append((f"`{cell(record[0])}`", cell(record[1])))
    return table(("option", "meaning"), rows)


DRAWINGS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "profiles": profiles,
    "error_tree": error_tree,
    "error_table": error_table,
    "state_table": state_table,
    "move_table": move_table,
    "priority_table": priority_table,
    "commands": commands,
    "shared_options": shared_options,
}


# ---------------------------------------------------------------- pages


def redrawn(text: str) -> str:
    """Return a page with its drawn parts current."""
    return _DRAWN.sub(lambda m: f"{m['open']}\n{DRAWINGS[m['name']]()}\n{m['close']}", text)


def stale_pages(*, write: bool) -> list[str]:
    """Return the pages that are not current, rewritten if asked; one that cannot be drawn counts with its reason."""
    stale = []
    for page in sorted(DOCS.rglob("*.md")):
        name = page.relative_to(DOCS.parent).as_posix()
        before = page.read_text(encoding="utf-8")
        try:
            after = redrawn(before)
        except (ImportError, AttributeError) as error:
            stale.append(f"{name}: {error}")
            continue
        if after != before:
            stale.append(name)
            if write:
                page.write_text(after, encoding="utf-8")
    return stale


def main(argv: list[str]) -> int:
    """Draw or check; return the exit code."""
    check = "--check" in argv
    stale = stale_pages(write=not check)
    for name in stale:
        sys.stdout.write(f"{'not current' if check else 'drawn'}: {name}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
