"""`sennit worker` and `sennit up`: this process works until it is told to stop.

    first SIGTERM or Ctrl-C ─► no new work, bodies drain ─► exit 143 or 130
    second                  ─► what still runs is handed back at once, without using an attempt up

asyncio runs on the main OS thread and hears signals through the loop, so a body is never torn by a KeyboardInterrupt.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, TypedDict, Unpack

import click

from sennit.cli.commits import Commits, OwnCommits
from sennit.cli.console import LogLines
from sennit.cli.discover import load_app, usual_target
from sennit.cli.output import span, traits
from sennit.cli.shared import Shared, pass_shared, shared_options
from sennit.errors import SettingsError, UsageError
from sennit.model.lifecycle import State
from sennit.model.task import TaskView, WorkerInfo
from sennit.runtime.app import App
from sennit.runtime.stores import is_postgres, sqlite_path
from sennit.store.urls import without_password

# The live line is drawn this long after a commit, so at most four times a second and never while nothing happens.
REDRAW_S: Final = 0.25
STILL_RUNNING_SHOWN_MAX: Final = 10


class Wishes(TypedDict):
    """What the command line says of how to work; None is as the settings say."""

    queues: tuple[str, ...]
    slots: int | None
    labels: str | None
    drain_s: float | None


def working_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options of `Wishes`."""
    options = (
        click.option(
            "-q", "--queue", "queues", multiple=True, metavar="NAME:SLOTS", help="Serve only these; may be repeated."
        ),
        click.option("--slots", type=click.IntRange(1), help="Tasks of each other queue at once; default: settings."),
        click.option(
            "--labels", metavar="LABEL,…", help="What this machine has that tasks may need: gpu,eu; default: settings."
        ),
        click.option(
            "--drain-s", type=click.FloatRange(0), help="How long bodies may go on after a signal; default: settings."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("target", metavar="MODULE:APP")
@working_options
@shared_options(q_is_taken=True)
@pass_shared
def worker(shared: Shared, target: str, **wishes: Unpack[Wishes]) -> int:
    """Run tasks of an app until SIGTERM or Ctrl-C, which drain; a second one hands back what runs at once.

    MODULE:APP is imported from the working directory; path/to/file.py:app works too.

    Exits with 143 after SIGTERM and 130 after Ctrl-C, drained or handed back: nothing is lost either way.
    """
    return _work(shared, target, wishes, live=False)


@click.command()
@click.argument("target", metavar="[MODULE:APP]", required=False)
@working_options
@click.option("--cluster", metavar="auto|ray://HOST:PORT", help="Work on the nodes of a Ray cluster instead of here.")
@click.option("--nodes", type=click.IntRange(1), help="With --cluster: workers, each on another node; default: all.")
@click.option("--cpus-max", type=click.IntRange(0), default=0, help="With --cluster: let Ray grow it up to this.")
@shared_options(q_is_taken=True)
@pass_shared
def up(
    shared: Shared,
    target: str | None,
    *,
    cluster: str | None,
    nodes: int | None,
    cpus_max: int,
    **wishes: Unpack[Wishes],
) -> int:
    """Like `worker`, with a live status line on a terminal; or one worker on each node of a Ray cluster.

    Without MODULE:APP it looks for app.py, fleet.py, main.py and tasks.py in the working directory.
    """
    if cluster is not None:
        target = target or usual_target()
        return _work_on_cluster(shared, target, wishes, cluster=cluster, nodes=nodes, cpus_max=cpus_max)
    live = sys.stderr.isatty() and shared.verbosity >= 0
    return _work(shared, target or usual_target(), wishes, live=live)


def _work(shared: Shared, target: str, wishes: Wishes, *, live: bool) -> int:
    shared.start_logging(works=True)
    log = shared.log_lines
    assert log is not None  # noqa: S101 - started above
    app = load_app(target)
    given: dict[str, Any] = {name: value for name in ("slots", "labels") if (value := wishes.get(name)) is not None}
    app.use(shared.db, queues=_slots(wishes["queues"]) if wishes["queues"] else None, **given)
    if not app.registry.all():
        raise UsageError(
            f"{target} has no handler", why="a worker would have nothing to run", fix="decorate one: @app.task"
        )
    say: Callable[[str], None] = log.say if shared.verbosity >= 0 else lambda _text: None
    session = _Session(app, say, log if live and app.url != "memory://" else None)
    drain_s = wishes["drain_s"]
    return 128 + asyncio.run(session.serve(app.settings.drain_s if drain_s is None else drain_s))


def _work_on_cluster(
    shared: Shared, target: str, wishes: Wishes, *, cluster: str, nodes: int | None, cpus_max: int
) -> int:
    from sennit.cli.cluster import ClusterSession, Plan

    shared.start_logging()
    log = shared.log_lines
    assert log is not None  # noqa: S101 - started above
    app = load_app(target)
    settings: dict[str, Any] = {} if wishes["labels"] is None else {"labels": wishes["labels"]}
    app.use(shared.db, **settings)
    _slots(wishes["queues"])
    options = [word for queue in wishes["queues"] for word in ("-q", queue)]
    for name, value in (("--slots", wishes["slots"]), ("--drain-s", wishes["drain_s"])):
        options += [] if value is None else [name, str(value)]
    drain_s = app.settings.drain_s if wishes["drain_s"] is None else wishes["drain_s"]
    plan = Plan(cluster, target, nodes, cpus_max, options, drain_s)
    say: Callable[[str], None] = log.say if shared.verbosity >= 0 else lambda _text: None
    return 128 + asyncio.run(ClusterSession(app, plan, say).serve())


def _slots(words: tuple[str, ...]) -> dict[str, int]:
    """Read `name:slots`.

    Raises:
        SettingsError: it is not that.
    """
    slots = {}
    for word in words:
        name, _, number = word.rpartition(":")
        if not name or not number.isdecimal() or int(number) < 1:
            raise SettingsError(f"-q {word} is not NAME:SLOTS", fix="for example -q llm:8")
        slots[name] = int(number)
    return slots


class _Session:
    """One run of a worker, from start to exit.

    Args:
        log: where the live line goes, or None.
    """

    def __init__(self, app: App, say: Callable[[str], None], log: LogLines | None) -> None:
        self._app = app
        self._say = say
        self._log = log
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()

    async def serve(self, drain_s: float) -> signal.Signals:
        """Work until told to stop; return the last signal that said so."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        await self._app.start()
        try:
            await self._announce()
            if self._log is None:
                last = await self._signals.get()
            else:
                with self._commits() as commits:
                    last = await self._show_live(commits, self._log)
            return await self._stop(last, drain_s)
        finally:
            await self._app.stop(0.0)
            await loop.run_in_executor(None, self._app.close)

    def _commits(self) -> Commits | OwnCommits:
        """Return what says that the picture has changed: the commits to the file, or those of this process to the server."""
        if not is_postgres(self._app.url):
            return Commits(sqlite_path(self._app.url))
        from sennit.store.postgres import PostgresStore

        store = self._app.store
        assert isinstance(store, PostgresStore)  # noqa: S101 - by its URL
        return OwnCommits(store.tell_commits)

    async def _announce(self) -> None:
        me = await self._me()
        served = " ".join(f"{name}:{n}" for name, n in sorted(self._app.served_queues().items()))
        self._say(
            f"worker {me.id if me else '?'} (pid {os.getpid()}) serves {served} of {without_password(self._app.url)}{traits(me)}"
        )

    async def _me(self) -> WorkerInfo | None:
        here = socket.gethostname()
        known = await self._app.store.workers()
        return next((w for w in known if w.pid == os.getpid() and w.host == here and w.role == "worker"), None)

    # ------------------------------------------------------------ stopping

    async def _stop(self, first: signal.Signals, drain_s: float) -> signal.Signals:
        """Drain, or hand back at a second signal."""
        drain = asyncio.create_task(self._app.stop(drain_s))
        again = asyncio.create_task(self._signals.get())
        held = await self._say_what_runs(first, drain_s)
        await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        if not drain.done():
            self._say("handing back what still runs, without using an attempt up")
            drain.cancel()
            await asyncio.wait({drain})
            await self._app.stop(0.0)
        else:
            await drain
        left = [task for task in held if (await self._app.store.task(task.id)).state.live]
        self._say(f"stopped; {len(left)} handed back" if left else "stopped")
        if again.done():
            return again.result()
        again.cancel()
        return first

    async def _say_what_runs(self, number: signal.Signals, drain_s: float) -> list[TaskView]:
        me = await self._me()
        running = (
            []
            if me is None
            else [t for t in await self._app.store.tasks(states=[State.RUNNING]) if t.worker_id == me.id]
        )
        if not running:
            self._say(f"{number.name}: stopping")
            return []
        now_us = self._app.store.now_us()
        self._say(
            f"{number.name}: no new work; {len(running)} running get up to {span(drain_s)}, Ctrl-C again hands them back"
        )
        for task in running[:STILL_RUNNING_SHOWN_MAX]:
            age = span((now_us - (task.started_us or now_us)) / 1e6)
            self._say(f"  task {task.id} {task.handler}, attempt {task.attempt}, running for {age}")
        if len(running) > STILL_RUNNING_SHOWN_MAX:
            self._say(f"  and {len(running) - STILL_RUNNING_SHOWN_MAX} more")
        return running

    # ------------------------------------------------------------ the live line

    async def _show_live(self, commits: Commits | OwnCommits, log: LogLines) -> signal.Signals:
        """Redraw after commits until a signal comes."""
        changed = asyncio.Event()
        changed.set()
        loop = asyncio.get_running_loop()

        def committed() -> None:
            commits.drain()
            changed.set()

        loop.add_reader(commits.fileno(), committed)
        drawing = asyncio.create_task(self._draw(changed, log))
        try:
            return await self._signals.get()
        finally:
            loop.remove_reader(commits.fileno())
            drawing.cancel()
            await asyncio.wait({drawing})
            log.live("")

    async def _draw(self, changed: asyncio.Event, log: LogLines) -> None:
        store = self._app.store
        while True:
            await changed.wait()
            await asyncio.sleep(REDRAW_S)  # one picture for all commits of this while
            changed.clear()
            counts, ledger = await store.counts(), await store.ledger()
            log.live(_line(counts, ledger.succeeded, ledger.failed)[: shutil.get_terminal_size().columns - 1])


def _line(counts: Mapping[str, Mapping[State, int]], succeeded: int, failed: int) -> str:
    queues = "   ".join(
        f"{queue} " + " ".join(f"{n:,} {state}" for state, n in states.items() if n)
        for queue, states in sorted(counts.items())
    )
    return f"{queues or 'idle'}   done {succeeded:,}" + (f"   ✕ {failed:,}" if failed else "")
