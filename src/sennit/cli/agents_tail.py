"""`sennit agents tail`: what an agent writes, run after run, as it is written.

    stdout.log of run 1 ─► of run 2 ─► … ─► the task has ended        -f sleeps on the file and on the store
          └─ adapter's reader ─► events in human words  |  --raw: lines  |  --raw into a pipe: the bytes

A program's output is hostile input. To a terminal it comes escaped; only a pipe that asked for `--raw` gets it untouched.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from sennit.cli.agent_view import event_json, event_words, is_here, line_words
from sennit.cli.commits import Commits
from sennit.cli.output import emit, safe
from sennit.cli.shared import Shared
from sennit.errors import AgentError
from sennit.execute.adapters import reader_of
from sennit.execute.adapters.base import AgentRun, Reader
from sennit.execute.agent_output import GrowingFile
from sennit.model.agent import AgentView
from sennit.runtime.stores import is_postgres, sqlite_path
from sennit.store.protocol import Store
from sennit.sync.inotify import FileWatcher

if TYPE_CHECKING:
    from sennit.store.postgres_follow import Follower

STDOUT: Final = "stdout.log"
STDERR: Final = "stderr.log"


def tail(shared: Shared, store: Store, task_id: int, *, follow: bool, stderr: bool, raw: bool) -> None:
    """Print what the agent of a task has written in its last run; with `follow` go on until the task has ended.

    Raises:
        AgentError: it has not begun, or its files are not here.
    """
    name = STDERR if stderr else STDOUT
    printer = _printer(shared, is_raw=raw, has_events=not stderr)
    if follow:
        _follow(store, task_id, name, printer)
        return
    view = one(store, task_id)
    _need_files(view)
    with closing(GrowingFile(Path(view.folder) / name)) as file:
        printer.begin(view)
        printer.print(file)
        printer.end(file)


def one(store: Store, task_id: int) -> AgentView:
    """Return the agent of a task.

    Raises:
        TaskNotFound: there is no such task.
        AgentError: it has no agent, or none yet.
    """
    views = store.agents(task_ids=[task_id]).result()
    if views:
        return views[0]
    task = store.task(task_id).result()
    raise AgentError(
        f"task {task_id} has no agent",
        why=f"no agent of it has begun so far; it is {task.state}, its handler is {task.handler}",
        fix="see `sennit agents ls --all`" + (", or wait for it with `-f`" if task.state.live else ""),
    )


def _need_files(view: AgentView) -> None:
    if not is_here(view):
        raise AgentError(
            f"what the agent of task {view.task_id} wrote is on {view.host}",
            agent=view.agent,
            why="it stays in files on the host that the agent runs on",
            fix=f"there: sennit agents tail {view.task_id}",
        )
    if not Path(view.folder).is_dir():
        raise AgentError(
            f"what the agent of task {view.task_id} wrote is not there any more: {view.folder}",
            agent=view.agent,
            why="it was removed, by `sennit agents clean` or by hand",
        )


# ---------------------------------------------------------------- following


def _follow(store: Store, task_id: int, name: str, printer: _Printer) -> None:
    """Print run after run until the task has ended."""
    shown: AgentView | None = None
    file: GrowingFile | None = None
    with FileWatcher() as watcher, _news_of(store, task_id) as news:
        live = True
        while live:
            # In this order: what was written before the end of the task, or before the next run, is there once that is seen.
            live = store.task(task_id).result().state.live
            view = next(iter(store.agents(task_ids=[task_id]).result()), None)
            if view is not None and (shown is None or (view.run, view.host) != (shown.run, shown.host)):
                _finish(printer, file)
                file, shown = _begin(printer, view, name, watcher, is_first=shown is None), view
            if file is not None:
                printer.print(file)
            if live and news.fileno() in watcher.wait(news.fileno()):
                news.drain()
        _finish(printer, file)
    if shown is None:
        one(store, task_id)  # it has ended without an agent: an error


def _begin(
    printer: _Printer, view: AgentView, name: str, watcher: FileWatcher, *, is_first: bool
) -> GrowingFile | None:
    """Go over to a run; None when it is on another host."""
    if not is_first or view.run > 1:
        click.echo(safe(f"── run {view.run} of {view.agent}, attempt {view.attempt} ──"), err=True)
    if not is_here(view):
        click.echo(safe(f"it runs on {view.host}: what it writes is there, in {view.folder}"), err=True)
        return None
    printer.begin(view)
    folder = Path(view.folder)
    watcher.watch(folder / name)
    # Its successor, too: the store tells of a new run only to those that have heard that something was committed.
    watcher.watch(folder.parent / str(view.run + 1) / name)
    return GrowingFile(folder / name)


def _finish(printer: _Printer, file: GrowingFile | None) -> None:
    if file is not None:
        printer.print(file)
        printer.end(file)
        file.close()


# ---------------------------------------------------------------- news of the store


class _News(Protocol):
    """Readable when something may be new in the store."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def drain(self) -> None:
        """Forget the news so far; a look after this sees what they were about."""


@contextmanager
def _news_of(store: Store, task_id: int) -> Iterator[_News]:
    if not is_postgres(store.url):
        with Commits(Path(sqlite_path(store.url))) as commits:
            yield _Committed(commits)
        return
    from sennit.store.postgres import PostgresStore

    assert isinstance(store, PostgresStore)  # noqa: S101 - by its URL
    with store.follow() as follower, closing(_Rung(follower)) as rung:
        store.watch(task_id).add_done_callback(lambda _: follower.wake())
        yield rung


class _Committed:
    """Commits to a SQLite file."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits

    def fileno(self) -> int:
        return self._commits.fileno()

    def drain(self) -> None:
        self._commits.wait()  # no time: it is readable. It sees to it that a look comes after the commit


class _Rung:
    """The bell of a follower as a descriptor: an OS thread waits for it."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._in, self._out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._is_over = False
        self._trouble: Exception | None = None
        self._os_thread = threading.Thread(target=self._wait, name="sennit-follow", daemon=True)
        self._os_thread.start()

    def _wait(self) -> None:
        try:
            while not self._is_over:
                self._follower.wait()
                with suppress(BlockingIOError):  # full: it is readable
                    os.write(self._out, b"\0")
        except Exception as error:  # noqa: BLE001 - raised where the news is waited for
            self._trouble = error
            os.write(self._out, b"\0")

    def fileno(self) -> int:
        return self._in

    def drain(self) -> None:
        os.read(self._in, 64 * 1024)
        if self._trouble is not None:
            raise self._trouble

    def close(self) -> None:
        self._is_over = True
        self._follower.wake()
        self._os_thread.join()
        os.close(self._in)
        os.close(self._out)


# ---------------------------------------------------------------- printing


class _Printer(Protocol):
    """Prints what is in a file, and goes on there."""

    def begin(self, view: AgentView) -> None:
        """A run: its file is next."""

    def print(self, file: GrowingFile) -> None:
        """Print what is there now."""

    def end(self, file: GrowingFile) -> None:
        """Print a last line that has no newline."""


def _printer(shared: Shared, *, is_raw: bool, has_events: bool) -> _Printer:
    if is_raw and not shared.json and not sys.stdout.isatty():
        return _Bytes()
    return _Words(is_json=shared.json, has_events=has_events and not is_raw)


class _Bytes:
    """The bytes as they are, for a program that reads our pipe."""

    def begin(self, view: AgentView) -> None:
        del view

    def print(self, file: GrowingFile) -> None:
        out = sys.stdout.buffer
        while chunk := file.chunk():
            out.write(chunk)
        out.flush()

    def end(self, file: GrowingFile) -> None:
        del file  # it ends as it ends


class _Words:
    """Events in words, or as JSON; lines where there is no reader for events."""

    def __init__(self, *, is_json: bool, has_events: bool) -> None:
        self._is_json = is_json
        self._has_events = has_events
        self._view: AgentView | None = None
        self._reader: Reader | None = None

    def begin(self, view: AgentView) -> None:
        run = AgentRun(
            prompt="",
            session_id=view.session_id,
            is_resume=view.run > 1,
            cwd=Path(view.cwd),
            folder=Path(view.folder),
        )
        self._view = view
        self._reader = reader_of(view.adapter, run) if self._has_events else None

    def print(self, file: GrowingFile) -> None:
        while (lines := file.more()) is not None:
            self._echo(lines)

    def end(self, file: GrowingFile) -> None:
        self._echo(file.rest())

    def _echo(self, lines: Iterable[bytes]) -> None:
        """Print lines, those of a chunk at once."""
        if self._is_json:
            for line in lines:
                for shown in self._objects(line):
                    emit(shown)
        elif words := [word for line in lines for word in self._words(line)]:
            click.echo("\n".join(words))

    def _words(self, line: bytes) -> Iterator[str]:
        if self._reader is None:
            yield line_words(line)
            return
        events = self._reader.feed(line)
        if not events and not line.lstrip().startswith(b"{"):
            yield line_words(line)  # a stack trace, a complaint: no event, and often all that tells what is wrong
        yield from filter(None, map(event_words, events))

    def _objects(self, line: bytes) -> Iterator[dict[str, Any]]:
        assert self._view is not None  # noqa: S101 - a run has begun
        head = {"schema": "sennit.agent_event/1", "task_id": self._view.task_id, "run": self._view.run}
        if self._reader is None:
            yield {**head, "kind": "line", "text": line.decode(errors="backslashreplace")}
            return
        for event in self._reader.feed(line):
            yield {**head, **event_json(event)}
