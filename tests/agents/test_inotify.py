"""Being told when files change: files that come, go, are replaced; on a loop and in a blocking wait. Real files."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import select
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sennit.errors import UsageError
from sennit.sync import inotify
from sennit.sync.inotify import FileWatcher, Watch, watch_on_loop

QUEUED_MAX = Path("/proc/sys/fs/inotify/max_queued_events")


@pytest.fixture
def watcher() -> Iterator[FileWatcher]:
    with FileWatcher() as watcher:
        yield watcher


class Told:
    """Counts how often it was told."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1

    def since(self, watcher: FileWatcher) -> int:
        """How often it is told of what has happened by now."""
        before = self.times
        watcher.dispatch()
        return self.times - before


@pytest.fixture
def told() -> Told:
    return Told()


def inotify_descriptors() -> int:
    """How many this process has."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one of the listing itself
            found += str(descriptor.readlink()) == "anon_inode:inotify"
    return found


# ---------------------------------------------------------------- what is told


def test_a_write_is_told_once_to_each_who_watches_the_file_and_to_nobody_else(
    watcher: FileWatcher, tmp_path: Path
) -> None:
    names = ["a", "a", "b"]
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    all_told = [Told() for _ in names]
    for name, one in zip(names, all_told, strict=True):
        watcher.watch(tmp_path / name, one)

    (tmp_path / "a").write_text("x")

    assert [one.since(watcher) for one in all_told] == [1, 0, 0]
    assert [one.times for one in all_told] == [1, 1, 0]


def test_a_file_that_is_cut_short_is_told(watcher: FileWatcher, told: Told, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("many bytes")
    watcher.watch(path, told)

    os.truncate(path, 0)

    assert told.since(watcher) == 1


def test_a_file_that_comes_into_folders_that_come_is_told_and_so_are_its_writes(
    watcher: FileWatcher, told: Told, tmp_path: Path
) -> None:
    path = tmp_path / "not" / "yet" / "there"
    watcher.watch(path, told)

    (tmp_path / "not").mkdir()
    assert told.since(watcher) == 1
    (tmp_path / "not" / "yet").mkdir()
    (tmp_path / "not" / "other").touch()
    assert told.since(watcher) == 1
    path.touch()
    assert told.since(watcher) == 1
    path.write_text("x")
    assert told.since(watcher) == 1


def test_what_is_made_between_the_look_for_a_file_and_the_watch_of_its_folder_is_found(
    watcher: FileWatcher, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event tells of it: it came before the folder was watched. The writes are told only if it was looked for again."""
    path, add = tmp_path / "folder" / "file", watcher._add

    def add_late(place: Path, mask: int) -> int | None:
        found = add(place, mask)
        if place == path and found is None:
            path.parent.mkdir(exist_ok=True)
            path.touch()
        return found

    monkeypatch.setattr(watcher, "_add", add_late)
    watcher.watch(path, told)
    path.write_text("x")

    assert told.since(watcher) == 1


def test_another_file_in_the_folder_is_not_told_to_who_waits_for_one(
    watcher: FileWatcher, told: Told, tmp_path: Path
) -> None:
    watcher.watch(tmp_path / "wanted", told)

    (tmp_path / "other").touch()

    assert told.since(watcher) == 0


def test_a_file_that_is_removed_and_made_again_goes_on_being_told(
    watcher: FileWatcher, told: Told, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    path.touch()
    watcher.watch(path, told)

    path.unlink()
    assert told.since(watcher) == 1
    path.touch()
    assert told.since(watcher) == 1
    path.write_text("x")
    assert told.since(watcher) == 1


def test_the_end_of_a_file_that_somebody_has_open_is_told_and_so_is_its_successor(
    watcher: FileWatcher, told: Told, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    with path.open("w"):
        watcher.watch(path, told)

        path.unlink()
        assert told.since(watcher) == 1
        path.touch()
        assert told.since(watcher) == 1


@pytest.mark.parametrize("other_first", [True, False])
def test_a_file_that_another_one_replaces_is_told_and_then_the_other(
    watcher: FileWatcher, told: Told, tmp_path: Path, *, other_first: bool
) -> None:
    path, other = tmp_path / "log", tmp_path / "new"
    path.touch()
    if other_first:
        other.touch()
        watcher.watch(other)  # the same inode under two names, for two who watch
    watcher.watch(path, told)

    other.touch()
    other.rename(path)
    assert told.since(watcher) >= 1
    path.write_text("x")
    assert told.since(watcher) == 1


def test_a_folder_that_goes_with_its_file_and_comes_again_is_no_end(
    watcher: FileWatcher, told: Told, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "log"
    path.parent.mkdir()
    watcher.watch(path, told)

    path.parent.rmdir()
    watcher.dispatch()
    path.parent.mkdir()
    path.write_text("x")
    watcher.dispatch()
    path.write_text("y")

    assert told.since(watcher) == 1


def test_the_way_to_a_file_may_lead_through_another_file_for_now(
    watcher: FileWatcher, told: Told, tmp_path: Path
) -> None:
    """It is no folder, so nothing can be in it; looking for it again and again would never end."""
    way = tmp_path / "way"
    way.touch()
    watcher.watch(way / "log", told)

    way.unlink()
    way.mkdir()
    watcher.dispatch()
    (way / "log").touch()

    assert told.since(watcher) == 1


def test_a_closed_watch_is_told_nothing_also_when_another_one_closes_it_meanwhile(
    watcher: FileWatcher, told: Told, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    path.touch()
    others: list[Watch] = []
    first = watcher.watch(path, lambda: others.pop().close())
    others.append(watcher.watch(path, told))

    path.write_text("x")

    assert told.since(watcher) == 0
    first.close()
    first.close()  # harmless
    watcher.dispatch()
    path.write_text("y")
    assert select.select([watcher], [], [], 0) == ([], [], [])  # the kernel does not watch it any more, either
    assert watcher.statistics().watches == len(watcher._aims) == 0


def test_a_watch_that_is_closed_leaves_the_other_one_of_the_same_file(
    watcher: FileWatcher, told: Told, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    path.touch()
    watcher.watch(path).close()
    gone = watcher.watch(path)
    watcher.watch(path, told)
    gone.close()

    path.write_text("x")

    assert told.since(watcher) == 1


def test_after_an_overflow_all_watches_are_told_and_find_what_came_meanwhile(
    watcher: FileWatcher, told: Told, tmp_path: Path
) -> None:
    noisy, late = [tmp_path / "a", tmp_path / "b"], tmp_path / "late"
    for path in noisy:
        path.touch()
        watcher.watch(path)
    watcher.watch(late, told)
    descriptors = [os.open(path, os.O_WRONLY) for path in noisy]
    for n in range(int(QUEUED_MAX.read_text()) + 10):  # in turns: the kernel merges equal events that follow each other
        os.write(descriptors[n % 2], b"x")
    for descriptor in descriptors:
        os.close(descriptor)

    late.touch()
    while not watcher.statistics().overflows:
        watcher.dispatch()
    assert told.times == 1
    late.write_text("x")

    assert told.since(watcher) == 1


# ---------------------------------------------------------------- waiting, and the end


def test_a_blocking_wait_ends_with_a_change_and_with_another_descriptor(
    watcher: FileWatcher, told: Told, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    path.touch()
    watcher.watch(path, told)
    reading, writing = os.pipe()

    writer = threading.Thread(target=path.write_text, args=("x",))
    writer.start()
    by_file = watcher.wait(reading)
    writer.join()
    watcher.dispatch()
    os.write(writing, b"x")
    by_pipe = watcher.wait(reading)

    assert told.times
    assert (by_file, by_pipe) == (set(), {reading})
    os.close(reading)
    os.close(writing)


def test_all_files_of_a_loop_share_one_descriptor_which_is_closed_with_the_loop(tmp_path: Path) -> None:
    before, os_threads = inotify_descriptors(), threading.active_count()

    async def main() -> tuple[int, int]:
        changed = asyncio.Event()
        watches = [watch_on_loop(tmp_path / str(n), changed.set) for n in range(100)]
        (tmp_path / "99").touch()
        await changed.wait()
        inside = inotify_descriptors(), threading.active_count()
        for watch in watches:
            watch.close()
        return inside

    inside = asyncio.run(main())

    assert inside == (before + 1, os_threads)
    assert inotify_descriptors() == before


def test_a_folder_on_the_way_that_may_not_be_entered_is_trouble_that_is_told(
    watcher: FileWatcher, told: Told, tmp_path: Path
) -> None:
    """Root may enter every folder, so a name that is too long stands for it: neither is mended by waiting."""
    path = tmp_path / "folder" / ("x" * 300)
    watch = watcher.watch(path, told)

    path.parent.mkdir()

    assert told.since(watcher) == 1
    assert isinstance(watch.trouble, OSError)
    assert watch.is_closed


def test_a_limit_that_is_used_up_is_named() -> None:
    """That of open files, which is this process's own: to use up that of the user would trouble others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(UsageError, match=r"Too many open files") as raised:
            FileWatcher()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert "fs.inotify.max_user_instances" in raised.value.fix


def test_a_system_without_inotify_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty:
        """A C library that has nothing."""

    inotify._library.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Empty())

    with pytest.raises(UsageError, match="this system has none"):
        FileWatcher()


def test_a_forked_child_takes_no_events_from_its_parent(watcher: FileWatcher, told: Told, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    watcher.watch(path, told)

    pid = os.fork()
    if not pid:
        os._exit(int(watcher.fileno() != -1))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    path.write_text("x")

    assert code == 0
    assert told.since(watcher) == 1
