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
from typing import Final

import click

from sennit.cli.commits import Commits
from sennit.cli.console import LogLines
from sennit.cli.discover import load_app, usual_target
from sennit.cli.output import span
from sennit.cli.shared import Shared, pass_shared, shared_options
from sennit.errors import SettingsError, UsageError
from sennit.model.lifecycle import State
from sennit.model.task import TaskView, WorkerInfo
from sennit.runtime.app import App
from sennit.runtime.stores import sqlite_path

# The live line is drawn this long after a commit, so at most four times a second and never while nothing happens.
REDRAW_S: Final = 0.25
STILL_RUNNING_SHOWN_MAX: Final = 10


@click.command()
@click.argument("target", metavar="MODULE:APP")
@click.option("-q", "--queue", "queues", multiple=True, metavar="NAME:SLOTS", help="Serve only these; may be repeated.")
@click.option(
    "--drain-s", type=click.FloatRange(0), help="How long bodies may go on after a signal; default: settings."
)
@shared_options(q_is_taken=True)
@pass_shared
def worker(shared: Shared, target: str, *, queues: tuple[str, ...], drain_s: float | None) -> int:
    """Run tasks of an app until SIGTERM or Ctrl-C, which drain; a second one hands back what runs at once.

    MODULE:APP is imported from the working directory; path/to/file.py:app works too.
    """
    return _work(shared, target, queues, drain_s, live=False)


@click.command()
@click.argument("target", metavar="[MODULE:APP]", required=False)
@click.option("-q", "--queue", "queues", multiple=True, metavar="NAME:SLOTS", help="Serve only these; may be repeated.")
@click.option(
    "--drain-s", type=click.FloatRange(0), help="How long bodies may go on after a signal; default: settings."
)
@shared_options(q_is_taken=True)
@pass_shared
def up(shared: Shared, target: str | None, *, queues: tuple[str, ...], drain_s: float | None) -> int:
    """Like `worker`, with a live status line on a terminal.

    Without MODULE:APP it looks for app.py, fleet.py, main.py and tasks.py in the working directory.
    """
    live = sys.stderr.isatty() and shared.verbosity >= 0
    return _work(shared, target or usual_target(), queues, drain_s, live=live)


def _work(shared: Shared, target: str, queues: tuple[str, ...], drain_s: float | None, *, live: bool) -> int:
    shared.start_logging(works=True)
    log = shared.log_lines
    assert log is not None  # noqa: S101 - started above
    app = load_app(target)
    app.use(shared.db, queues=_slots(queues) if queues else None)
    if not app.registry.all():
        raise UsageError(
            f"{target} has no handler", why="a worker would have nothing to run", fix="decorate one: @app.task"
        )
    say: Callable[[str], None] = log.say if shared.verbosity >= 0 else lambda _text: None
    session = _Session(app, say, log if live and app.url != "memory://" else None)
    return 128 + asyncio.run(session.serve(app.settings.drain_s if drain_s is None else drain_s))


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
                with Commits(sqlite_path(self._app.url)) as commits:
                    last = await self._show_live(commits, self._log)
            return await self._stop(last, drain_s)
        finally:
            await self._app.stop(0.0)
            await loop.run_in_executor(None, self._app.close)

    async def _announce(self) -> None:
        me = await self._me()
        served = " ".join(f"{name}:{n}" for name, n in sorted(self._app.served_queues().items()))
        self._say(f"worker {me.id if me else '?'} (pid {os.getpid()}) serves {served} of {self._app.url}")

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

    async def _show_live(self, commits: Commits, log: LogLines) -> signal.Signals:
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
