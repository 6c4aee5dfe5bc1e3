"""`sennit init --agents-md`: tells the agents that work in a repository that there are tasks, and how they get them.

    AGENTS.md    …yours…  <!-- sennit:begin -->  the block  <!-- sennit:end -->  …yours…

What is outside of the two marks is never touched, and a second run changes nothing.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import click

from sennit.cli.shared import Shared, pass_shared, shared_options
from sennit.errors import UsageError

NAME: Final = "AGENTS.md"
BEGIN: Final = "<!-- sennit:begin (made by `sennit init --agents-md`, which writes it anew) -->"
END: Final = "<!-- sennit:end -->"
_BEGINS: Final = "<!-- sennit:begin"

BLOCK: Final = """\
## Tasks

Work comes from the MCP server `sennit`. If its tools are not there, ask the person to add it (`sennit init` prints how).

1. `task_claim` gets the next task and waits for one. Keep the `claim` it returns and pass it to every other call.
2. Read `instructions`, `dependencies` (results of earlier tasks) and `notes` (of earlier attempts at this one).
3. `lock_paths` before you change files, so that nobody else does; the locks end with the claim.
4. `task_heartbeat` at least every two minutes while you work. After `lease_s` seconds of silence the task goes to somebody
   else; then stop: what you still write is refused.
5. `ask_human` for a decision that is not yours. Your claim goes on; `await_answer` waits for the answer.
6. `task_note` what the next one should know. `task_create` for work that should be a task of its own.
7. End it: `task_complete` with a result, or `task_fail` with what went wrong (`give_back` if it is not for you).

An error says what happened, why, and what to do. Never make up a claim, and never work on a task without one."""


@click.command()
@click.option("--agents-md", is_flag=True, help=f"Write or update the block of sennit in {NAME}.")
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Another file than {NAME} of the repository.",
)
@shared_options()
@pass_shared
def init(shared: Shared, *, agents_md: bool, path: Path | None) -> None:
    """Tell the agents that work in this repository about sennit, and print how each program adds the MCP server.

    The block stands between two marks; what is outside of them is left alone.
    """
    if agents_md:
        place = path or _root(Path.cwd()) / NAME
        click.echo(f"{place}: {write_block(place)}")
    elif path is not None:
        raise UsageError("--file without --agents-md writes nothing", fix=f"sennit init --agents-md --file {path}")
    click.echo("\n".join(snippets(shared.db or shared.environment_db)))


def write_block(path: Path) -> str:
    """Write the block into a file; return `written`, `updated` or `unchanged`.

    Raises:
        UsageError: one of the marks is missing, or there are several; nothing was written.
    """
    try:
        before = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        before = ""
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8", why=str(error), fix="convert it, or name another --file") from None
    newline = "\r\n" if "\r\n" in before else "\n"
    block = f"{BEGIN}\n{BLOCK}\n{END}".replace("\n", newline)
    begins, ends = before.count(_BEGINS), before.count(END)
    if (begins, ends) == (0, 0):
        gap = "" if not before else newline if before.endswith(newline) else 2 * newline
        after, word = f"{before}{gap}{block}{newline}", "written"
    elif (begins, ends) == (1, 1) and (begin := before.index(_BEGINS)) < (end := before.index(END)):
        after, word = before[:begin] + block + before[end + len(END) :], "updated"
    else:
        raise UsageError(
            f"{path} has {begins} marks `{_BEGINS} …` and {ends} marks `{END}`",
            why="it is not clear what may be replaced",
            fix="remove the marks and what is between them, and run this again",
        )
    if after == before:
        return "unchanged"
    _replace(path, after)
    return word


def _replace(path: Path, text: str) -> None:
    """Put a new file in the place of the old one, or leave the old one as it is."""
    target = path.resolve()  # a link stays a link
    with tempfile.NamedTemporaryFile("wb", dir=target.parent, prefix=f".{target.name}.", delete=False) as new:
        try:
            new.write(text.encode())
            new.flush()
            os.fchmod(new.fileno(), target.stat().st_mode & 0o7777 if target.exists() else 0o644)
            Path(new.name).replace(target)
        except BaseException:
            Path(new.name).unlink(missing_ok=True)
            raise


def _root(folder: Path) -> Path:
    """Return the repository that a folder is in, else the folder."""
    return next((place for place in (folder, *folder.parents) if (place / ".git").exists()), folder)


def snippets(url: str | None) -> list[str]:
    """Return how programs add the server, one line each.

    Args:
        url: of the database; None is that of the folder they run in.
    """
    words = ["mcp", "--db", url] if url else ["mcp"]
    listed = ", ".join(f'"{word}"' for word in words)
    line = " ".join(words)
    return [
        f"claude:  claude mcp add sennit -- sennit {line}",
        f"codex:   codex mcp add sennit -- sennit {line}",
        # Without `required` codex 0.169.0 does not wait for it: a short `codex exec` begins, and ends, without the tools.
        f'         or in config.toml: mcp_servers.sennit = {{ command = "sennit", args = [{listed}], required = true }}',
        f"gemini:  gemini mcp add sennit sennit {line}",
    ]
