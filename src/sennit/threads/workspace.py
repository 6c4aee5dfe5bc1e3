"""Workspace: what the tasks of a conversation share as files, safely among OS threads, coroutines and processes.

    root/threads/<thread>/context/<key>                one value each, replaced as a whole
                         /outputs/00000001-report.md   appended only; 00000001~ beside it says what it is
                         /tasks/<task id>/context/…    the same for one task
                         /read                         how far it has read the broadcasts
        /shared/<name>  /broadcasts  /locks/…  /trash/…

A value is a file that any tool can read: one line of description, then the value. Writers take turns under a real file
lock per thread (per name for shared documents); readers take none and see the old or the new value, never half of one.
What a call has written is on disk when it returns, and a kill at any point leaves the old value or the new one.

Ids, keys and names are any text: `threads.names` makes file names of them, `threads.folders` follows no symlink.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sennit.errors import PayloadError, UsageError
from sennit.sync.clock import wall_us
from sennit.sync.filelocks import FileLock
from sennit.threads import broadcasts
from sennit.threads.documents import decode_document, encode, encode_json
from sennit.threads.faces import Work, operation
from sennit.threads.folders import Folder
from sennit.threads.names import safe_name
from sennit.threads.outputs import Output, add_output, list_outputs, read_output
from sennit.threads.values import Ceiling, Place

__all__ = ["Message", "Output", "Workspace", "WorkspaceStatistics"]


class Message(msgspec.Struct, frozen=True):
    """One broadcast. `at_us` is the wall clock, µs since the epoch."""

    value: Any
    at_us: int


@dataclass(frozen=True, slots=True)
class WorkspaceStatistics:
    """Threads that have anything, files of all of them and of shared documents, and what these files take."""

    threads: int
    files: int
    size_bytes: int


class Workspace:
    """The files below one root folder, for any number of processes that use the same root.

    Every method has an async face: `await workspace.set_context.aio(…)`.

    Args:
        root: is made when something is first written to it.
        context_bytes_max: for one context value or broadcast.
        document_bytes_max: for one output or shared document.
        broadcasts_bytes_max: for all broadcasts together. When there are more, the older half is dropped; a thread that
            has not read it by then never will.
        lock_timeout_s: how long a writer waits for others; None is for ever. Then `LockTimeout` says who has the lock.
    """

    def __init__(
        self,
        root: Path | str = ".sennit/workspace",
        *,
        context_bytes_max: int = 1024 * 1024,
        document_bytes_max: int = 10 * 1024 * 1024,
        broadcasts_bytes_max: int = 10 * 1024 * 1024,
        lock_timeout_s: float | None = 30.0,
    ) -> None:
        self.root = Path(root).absolute()
        self._small = Ceiling(context_bytes_max, "context_bytes_max")
        self._document = Ceiling(document_bytes_max, "document_bytes_max")
        self._broadcasts_bytes_max = broadcasts_bytes_max
        self._lock_timeout_s = lock_timeout_s

    # ------------------------------------------------------------ context of a thread, or of one of its tasks

    @operation
    def set_context(self, thread_id: str, key: str, value: Any, *, task_id: int | None = None) -> Work[None]:
        """Store a value: text and bytes as such, all else as JSON.

        Raises:
            WorkspaceTooLarge, PayloadError: the value cannot be stored.
            UsageError: an empty id or key, or a symlink on the way.
            LockTimeout: others have had the lock for `lock_timeout_s`.
        """
        return self._context(thread_id, key, task_id).set(value)

    @operation
    def get_context(self, thread_id: str, key: str, default: Any = None, *, task_id: int | None = None) -> Work[Any]:
        """Return a value, or `default`."""
        return self._context(thread_id, key, task_id).get(default)

    @operation
    def update_context(
        self, thread_id: str, key: str, fn: Callable[[Any], Any], *, default: Any = None, task_id: int | None = None
    ) -> Work[Any]:
        """Replace a value by `fn(value)` and return that; `fn` gets `default` when there is none.

        `fn` runs while the lock of the thread is held: once, and others wait for it. If it raises, nothing changes.

        Raises:
            UsageError, WorkspaceTooLarge, PayloadError, LockTimeout: as `set_context`; also if `fn` itself changes
                something of this thread.
        """
        return self._context(thread_id, key, task_id).update(fn, default)

    @operation
    def delete_context(self, thread_id: str, key: str, *, task_id: int | None = None) -> Work[bool]:
        """Remove a value. False if there is none."""
        return self._context(thread_id, key, task_id).delete()

    @operation
    def contexts(self, thread_id: str, *, task_id: int | None = None) -> Work[dict[str, Any]]:
        """Return all values by key. Each is whole; they need not be of one moment."""
        folders = _folders(thread_id, task_id, "context")

        def do() -> dict[str, Any]:
            with Folder.found(self.root, *folders) as folder:
                names = [] if folder is None else sorted(folder.names())
                files = [] if folder is None else [(folder.path / name, folder.read(name)) for name in names]
            return dict(decode_document(file, path) for path, file in files if file is not None)

        return Work(do)

    # ------------------------------------------------------------ outputs of a thread

    @operation
    def add_output(self, thread_id: str, name: str, data: Any, *, task_id: int | None = None) -> Work[Output]:
        """Append an output to the thread's list; two may have the same name.

        Raises:
            WorkspaceTooLarge, PayloadError, UsageError, LockTimeout: as `set_context`.
        """
        folders = _folders(thread_id, None, "outputs")
        safe_name(name, "name")
        kind, content = encode(data, f"output {name!r:.80}")
        self._document.check(f"output {name!r:.80}", content)
        number = None if task_id is None else int(_task(task_id))

        def do() -> Output:
            with Folder.made(self.root, *folders) as folder:
                return add_output(folder, name, kind, content, task_id=number, at_us=wall_us())

        return Work(do, self._thread_lock(thread_id, f"add output {name!r}"))

    @operation
    def outputs(self, thread_id: str) -> Work[list[Output]]:
        """Return what the outputs are, in the order they were added, without their data."""
        folders = _folders(thread_id, None, "outputs")

        def do() -> list[Output]:
            with Folder.found(self.root, *folders) as folder:
                return [] if folder is None else list_outputs(folder)

        return Work(do)

    @operation
    def output(self, thread_id: str, sequence: int) -> Work[Any]:
        """Return the data of one output.

        Raises:
            UsageError: there is no such output.
        """
        folders = _folders(thread_id, None, "outputs")

        def do() -> Any:
            with Folder.found(self.root, *folders) as folder:
                return read_output(folder, sequence)

        return Work(do)

    # ------------------------------------------------------------ documents of all threads

    @operation
    def share(self, name: str, value: Any) -> Work[None]:
        """Store a document that all threads see; raises as `set_context`."""
        return self._shared(name).set(value)

    @operation
    def shared(self, name: str, default: Any = None) -> Work[Any]:
        """Return a shared document, or `default`."""
        return self._shared(name).get(default)

    @operation
    def update_shared(self, name: str, fn: Callable[[Any], Any], *, default: Any = None) -> Work[Any]:
        """Replace a shared document by `fn(document)` and return that; as `update_context`, with a lock per name."""
        return self._shared(name).update(fn, default)

    @operation
    def delete_shared(self, name: str) -> Work[bool]:
        """Remove a shared document. False if there is none."""
        return self._shared(name).delete()

    # ------------------------------------------------------------ broadcasts

    @operation
    def broadcast(self, message: Any) -> Work[None]:
        """Tell all threads something that serialises to JSON; also those that begin later, while it is kept.

        Raises:
            WorkspaceTooLarge, PayloadError, LockTimeout: as `set_context`.
        """
        if isinstance(message, bytes | bytearray | memoryview):
            raise PayloadError("a broadcast is JSON and not bytes", fix="share() the bytes and broadcast their name")
        content = encode_json(message, "broadcast")
        self._small.check("broadcast", content)

        def do() -> None:
            with Folder.made(self.root) as folder:
                line = b'{"at_us":%d,"value":%b}\n' % (wall_us(), content)
                broadcasts.append(folder, line, self._broadcasts_bytes_max)

        return Work(do, self._lock("broadcasts", purpose="broadcast"))

    @operation
    def messages(self, thread_id: str, *, advance: bool = True) -> Work[list[Message]]:
        """Return the broadcasts this thread has not been given yet, oldest first, and remember that it has them now.

        Of those it has missed, what `broadcasts_bytes_max` has left.
        With `advance=False` they are given again next time: for a reader that may die before it has used them.
        """
        folders = _folders(thread_id, None)

        def do() -> list[Message]:
            with Folder.found(self.root, *folders) as folder:
                position = int((folder is not None and folder.read("read")) or 0)
            with Folder.found(self.root) as folder:
                lines, end = ([], 0) if folder is None else broadcasts.read(folder, position)
            if lines and advance:
                with Folder.made(self.root, *folders) as folder:
                    folder.replace("read", str(end).encode())
            return [msgspec.json.decode(line, type=Message) for line in lines]

        return Work(do, self._thread_lock(thread_id, "messages"))

    # ------------------------------------------------------------ the whole

    @operation
    def statistics(self) -> Work[WorkspaceStatistics]:
        """Count what there is, by looking at every file."""

        def do() -> WorkspaceStatistics:
            threads = 0
            sizes: list[int] = []
            for top in ("threads", "shared"):
                with Folder.found(self.root, top) as folder:
                    if folder is not None:
                        threads += len(folder.names()) if top == "threads" else 0
                        sizes += folder.sizes()
            return WorkspaceStatistics(threads, len(sizes), sum(sizes))

        return Work(do)

    @operation
    def delete(self, thread_id: str) -> Work[bool]:
        """Remove all that a thread has; False if it has nothing. It is gone at once, also if this is killed halfway."""
        name = safe_name(thread_id, "thread_id")

        def do() -> bool:
            with Folder.made(self.root, "threads") as threads, Folder.made(self.root, "trash") as trash:
                found = threads.move(name, trash, f"{name}~{os.getpid()}-{wall_us()}")
                for left in trash.names():  # also by one that was killed
                    trash.remove_tree(left)
                return found

        return Work(do, self._thread_lock(thread_id, "delete"), ends_lock=True)

    # ------------------------------------------------------------ inside

    def _context(self, thread_id: str, key: str, task_id: int | None) -> Place:
        return Place(
            self.root,
            _folders(thread_id, task_id, "context"),
            "context",
            key,
            ceiling=self._small,
            lock=lambda purpose: self._thread_lock(thread_id, purpose),
        )

    def _shared(self, name: str) -> Place:
        return Place(
            self.root,
            ("shared",),
            "shared document",
            name,
            ceiling=self._document,
            lock=lambda purpose: self._lock("shared", safe_name(name, "name"), purpose=purpose),
        )

    def _thread_lock(self, thread_id: str, purpose: str) -> FileLock:
        return self._lock("threads", safe_name(thread_id, "thread_id"), purpose=purpose)

    def _lock(self, *names: str, purpose: str) -> FileLock:
        *folders, name = names
        with Folder.made(self.root, "locks", *folders) as folder:
            return FileLock(folder.path / f"{name}.lock", timeout_s=self._lock_timeout_s, purpose=purpose)


def _folders(thread_id: str, task_id: int | None, *below: str) -> tuple[str, ...]:
    thread = ("threads", safe_name(thread_id, "thread_id"))
    return (*thread, *below) if task_id is None else (*thread, "tasks", _task(task_id), *below)


def _task(task_id: object) -> str:
    if not isinstance(task_id, int) or task_id < 0:
        raise UsageError(
            f"task_id is {task_id!r}", why="it names a folder", fix="use the id of a task, as in handle.id"
        )
    return str(int(task_id))
