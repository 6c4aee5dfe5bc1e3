"""The folders in which runs of agents keep what they wrote: which of them nobody needs any more, and removing them.

    ROOT/TASK/RUN/stdout.log …      a task's folder goes as a whole, once the task has ended, and that is long enough ago

Only folders of this host, and only such as the store's own views name. Of a task that the store has pruned no view is left:
its folder is looked for in the root that belongs to this store alone.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sennit.errors import TaskNotFound
from sennit.model.task import TaskView
from sennit.store.protocol import Store
from sennit.sync.clock import wall_us
from sennit.threads.folders import Folder

__all__ = ["ended_folders", "remove_folder"]

_PAGE: Final = 1000


def ended_folders(store: Store, own_root: Path | None, *, keep_s: float) -> Iterator[Path]:
    """Yield the folders of tasks that ended more than `keep_s` seconds ago; blocks.

    Args:
        own_root: where only tasks of this store have folders; None when there is no such place.
    """
    now_us, keep_us = store.now_us(), round(keep_s * 1e6)
    found: set[Path] = set()
    for task_id, folder in _noted(store):
        task = _task(store, task_id)
        if task is not None and task.done_us is not None and now_us - task.done_us >= keep_us and folder.is_dir():
            found.add(folder)
            yield folder
    for task_id, folder in _numbered(own_root):
        if folder not in found and _task(store, task_id) is None and wall_us() - _changed_us(folder) >= keep_us:
            yield folder


def remove_folder(folder: Path) -> int:
    """Remove a task's folder; return how many bytes its files had. No symlink below its root is followed.

    Raises:
        OSError: something in it may not be removed.
        UsageError: it is a symlink.
    """
    with Folder.found(folder.parent) as root:
        if root is None:
            return 0
        with Folder.found(folder.parent, folder.name) as inside:
            n_bytes = 0 if inside is None else sum(inside.sizes())
        root.remove_tree(folder.name)
    return n_bytes


def _noted(store: Store) -> Iterator[tuple[int, Path]]:
    """Yield (task, its folder) of all agents whose last run was here."""
    host, before_id = socket.gethostname(), None
    while views := store.agents(live=False, before_id=before_id, limit=_PAGE).result():
        before_id = views[-1].task_id
        for view in views:
            folder = Path(view.folder).parent
            if view.host == host and view.folder and folder.name == str(view.task_id):
                yield view.task_id, folder


def _numbered(root: Path | None) -> Iterator[tuple[int, Path]]:
    if root is None or not root.is_dir():
        return
    for folder in sorted(root.iterdir()):
        if folder.name.isdecimal() and folder.name.isascii() and folder.is_dir() and not folder.is_symlink():
            yield int(folder.name), folder


def _task(store: Store, task_id: int) -> TaskView | None:
    """Return a task; None when it is pruned."""
    try:
        return store.task(task_id).result()
    except TaskNotFound:
        return None


def _changed_us(folder: Path) -> int:
    """Return when something was written to it last, wall clock: in it, in the folder of a run, or to a file there."""
    times = [folder.stat().st_mtime_ns]
    for run in folder.iterdir():
        times.append(run.lstat().st_mtime_ns)
        if not run.is_symlink() and run.is_dir():
            times += [file.lstat().st_mtime_ns for file in run.iterdir()]
    return max(times) // 1000
