"""`sennit agents`: what coding agents do and say, and how an operator ends them, frees their worktrees, and tidies up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sennit.cli.agent_view import HEAD, RIGHT, agent_json, in_full, row
from sennit.cli.group import Group
from sennit.cli.opening import existing, settings_here
from sennit.cli.output import emit, safe, size, table
from sennit.cli.providers import Duration
from sennit.cli.shared import Shared, examples, pass_shared, shared_options
from sennit.errors import SennitError, WorktreeError
from sennit.model.agent import ENDED, AgentView
from sennit.runtime.stores import is_postgres, sqlite_path
from sennit.store.protocol import Store

if TYPE_CHECKING:
    from sennit.execute.worktrees import Released

CONFLICT: Final = 4
_GONE_S: Final = 5.0  # for a killed process to be gone: one in an uninterruptible call of the kernel goes after it

task_id = click.argument("task_id", type=click.IntRange(1), metavar="TASK")


class Age(Duration):
    """As `Duration`, or 0."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        return 0.0 if str(value) == "0" else super().convert(value, param, ctx)


@click.group(cls=Group, invoke_without_command=True)
@shared_options()
@click.pass_context
def agents(ctx: click.Context) -> None:
    """Coding agents: what they do and say, and how to end them; alone it means `ls`."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(ls)


# ---------------------------------------------------------------- looking


@agents.command(
    epilog=examples("sennit agents", "sennit agents ls --all --json | jq -r 'select(.status == \"failed\") | .task_id'")
)
@click.option("--all", "ended", is_flag=True, help="Also those that have ended.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at most.")
@shared_options()
@pass_shared
def ls(shared: Shared, *, ended: bool = False, limit: int = 100) -> None:
    """List agents, that of the newest task first: what they do, since when, and what it took."""
    with existing(shared.url) as store:
        found = store.agents(live=None if ended else True, limit=limit).result()
        counts = store.agent_counts().result()
        now_us = store.now_us()
    if shared.json:
        for view in found:
            emit(agent_json(view))
    elif found:
        table(HEAD, [row(view, now_us) for view in found], right=RIGHT)
    else:
        click.echo(_none_words(counts, ended=ended))
    total = sum(n for by_status in counts.values() for status, n in by_status.items() if ended or status not in ENDED)
    if len(found) == limit < total:
        click.echo(f"{len(found):,} of {total:,}; more with --limit", err=True)


def _none_words(counts: dict[str, dict[Any, int]], *, ended: bool) -> str:
    n = sum(sum(by_status.values()) for by_status in counts.values())
    if ended or not n:
        return "no agent has begun yet: app.agent(name, …) declares one"
    return f"no agent is at work; {n:,} {'has' if n == 1 else 'have'} ended: --all"


@agents.command(epilog=examples("sennit agents show 12"))
@task_id
@shared_options()
@pass_shared
def show(shared: Shared, task_id: int) -> None:
    """Show the agent of one task: what it does, its session, its process, its folders, what it took."""
    with existing(shared.url) as store:
        view = _one(store, task_id)
        now_us = store.now_us()
    if shared.json:
        emit(agent_json(view))
    else:
        click.echo("\n".join(in_full(view, now_us)))


@agents.command(epilog=examples("sennit agents tail 12 -f", "sennit agents tail 12 --raw | jq .type"))
@task_id
@click.option("-f", "--follow", is_flag=True, help="Go on, from run to run, until the task has ended.")
@click.option("--stderr", is_flag=True, help="What it wrote to stderr, in place of stdout.")
@click.option("--raw", is_flag=True, help="The program's own lines; into a pipe: its bytes, untouched.")
@shared_options()
@pass_shared
def tail(shared: Shared, task_id: int, *, follow: bool, stderr: bool, raw: bool) -> None:
    """Print what the agent of a task tells in its last run: what it says, which tools it uses, its result.

    What it wrote is on the host that it ran on. On a terminal nothing of it moves the cursor or changes a colour.
    """
    from sennit.cli import agents_tail

    with existing(shared.url) as store:
        agents_tail.tail(shared, store, task_id, follow=follow, stderr=stderr, raw=raw)


def _one(store: Store, task_id: int) -> AgentView:
    from sennit.cli.agents_tail import one

    return one(store, task_id)


# ---------------------------------------------------------------- ending


@agents.command(epilog=examples("sennit agents stop 12 --reason 'wrong branch'"))
@task_id
@click.option("--reason", default="", help="Stored with the task.")
@shared_options()
@pass_shared
def stop(shared: Shared, task_id: int, *, reason: str) -> int:
    """Cancel the task: its program is asked to end, then killed with all its processes; exit 4 if it had ended already."""
    with existing(shared.url) as store:
        _one(store, task_id)
        (changed,) = store.cancel([task_id], reason=reason).result()
        state = "cancelled" if changed else str(store.task(task_id).result().state)
    if shared.json:
        emit({"schema": "sennit.change/1", "id": task_id, "changed": changed, "state": state})
    else:
        click.echo(f"{task_id} {state}" if changed else f"{task_id} unchanged: it is {state}")
    return 0 if changed else CONFLICT


@agents.command(epilog=examples("sennit agents kill 12"))
@task_id
@shared_options()
@pass_shared
def kill(shared: Shared, task_id: int) -> int:
    """End the program's process and nothing else: the task is attempted again, and goes on with its session.

    Only on the host that it runs on. Exit 4 when there is no process to end.
    """
    from sennit.cli.agent_kill import kill_process

    with existing(shared.url) as store:
        view = _one(store, task_id)
    outcome = kill_process(view, gone_s=_GONE_S)
    if shared.json:
        emit({"schema": "sennit.agent_kill/1", "task_id": task_id, "pid": view.pid, "outcome": outcome})
    else:
        words = {
            "killed": f"process {view.pid} is killed; its task goes on with it in another one, as its retries have it",
            "dying": f"process {view.pid} was killed and is not gone yet: the kernel holds it",
            "none": f"unchanged: no process of it is there, it is {view.status}",
        }
        click.echo(safe(f"{task_id} {words[outcome]}"))
    return CONFLICT if outcome == "none" else 0


# ---------------------------------------------------------------- tidying up


@agents.command(epilog=examples("sennit agents release 12", "sennit agents release 12 --force"))
@task_id
@click.option("--force", is_flag=True, help="Remove it and its branch, whatever is only there.")
@shared_options()
@pass_shared
def release(shared: Shared, task_id: int, *, force: bool) -> int:
    """Remove the worktree that was kept for the agent of a task; its branch stays if it has commits of its own.

    Refused, without --force, when something in it is in no commit. Exit 4 when there is none.
    """
    from sennit.cli.agent_release import release_worktree

    with existing(shared.url) as store:
        view = _one(store, task_id)
        if (state := store.task(task_id).result().state).live:
            raise WorktreeError(
                f"the task {task_id} of the agent is {state}: it works in its worktree, or will",
                agent=view.agent,
                fix=f"wait until it has ended, or `sennit agents stop {task_id}`",
            )
        released = release_worktree(view, force=force) if view.worktree else None
        if released is not None:
            store.release_agent(task_id).result()
    if shared.json:
        left = {"branch": "", "head_sha": ""} if released is None else _left(released)
        emit({"schema": "sennit.agent_release/1", "task_id": task_id, "released": released is not None, **left})
    elif released is None:
        click.echo(f"{task_id} unchanged: no worktree is kept for it")
    else:
        click.echo(safe(f"{task_id} released: {view.worktree} is removed{_left_words(released, force=force)}"))
    return CONFLICT if released is None else 0


def _left(released: Released) -> dict[str, str]:
    return {"branch": released.branch if released.branch_kept else "", "head_sha": released.head_sha}


def _left_words(released: Released, *, force: bool) -> str:
    branch, sha = released.branch, released.head_sha
    if released.branch_kept:
        return f"; branch {branch} has commits of its own and stays"
    return f"; its branch too, which `git branch {branch} {sha}` brings back for some weeks" if force and sha else ""


@agents.command(epilog=examples("sennit agents clean", "sennit agents clean --older-than 2d"))
@click.option(
    "--older-than", "keep_s", type=Age(), help="How long ago the task ended at least; default: agent_keep_s, a week."
)
@shared_options()
@pass_shared
def clean(shared: Shared, *, keep_s: float | None) -> int:
    """Remove what the runs of ended tasks wrote on this host. Tasks, results and worktrees stay.

    Exit 1 if something could not be removed.
    """
    from sennit.execute.agent_folders import ended_folders, remove_folder

    settings = settings_here()
    n = n_bytes = 0
    troubles: list[str] = []
    with existing(shared.url) as store:
        for folder in ended_folders(
            store, _own_root(shared.url), keep_s=settings.agent_keep_s if keep_s is None else keep_s
        ):
            try:
                n_bytes += remove_folder(folder)
                n += 1
            except (OSError, SennitError) as error:
                troubles.append(f"{folder}: {error}")
    if shared.json:
        emit({"schema": "sennit.agent_clean/1", "folders": n, "bytes": n_bytes, "errors": troubles})
    else:
        click.echo(f"{n:,} folder{'' if n == 1 else 's'} removed, {size(n_bytes)}")
        for trouble in troubles:
            click.echo(safe(f"✕ {trouble}"), err=True)
    return 1 if troubles else 0


def _own_root(url: str) -> Path | None:
    """Return where only runs of this database are kept; None when others may use the same folder."""
    return None if is_postgres(url) else Path(f"{sqlite_path(url)}.agents").absolute()
