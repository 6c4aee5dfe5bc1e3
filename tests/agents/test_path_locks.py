"""Files and folders are reserved by one at a time, over processes; with real locks in SQLite."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sennit.errors import Fenced, LockLost, LockTimeout, SettingsError, UsageError
from sennit.execute.path_locks import PathLocks, Reservation, lock_paths
from sennit.execute.path_names import PathNames
from sennit.model.lock import LOCK_NAME_CHARS_MAX
from sennit.model.thread import StateWrite
from sennit.store.leases import Locks
from tests.agents.path_programs import open_locks
from tests.agents.repositories import git, make_repository
from tests.crash.nursery import Nursery

PROGRAMS = "tests.agents.path_programs"
OpenPaths = Callable[[], PathLocks]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


@pytest.fixture
def locks(tmp_path: Path) -> Iterator[Locks]:
    with ExitStack() as stack:
        yield open_locks(tmp_path, stack)


@pytest.fixture
def paths(locks: Locks, repository: Path) -> PathLocks:
    return PathLocks(locks, repository)


async def is_free(paths: PathLocks, *wanted: str) -> bool:
    try:
        await paths.release(await paths.acquire(wanted, timeout_s=0))
    except LockTimeout:
        return False
    return True


async def waits(locks: Locks, n: int = 1) -> None:
    """Wait until `n` stand in line somewhere."""
    while sum(len(view.waiting) for view in await locks.backend("").locks()) < n:  # noqa: ASYNC110 - nobody is told
        await asyncio.sleep(0)


# ---------------------------------------------------------------- who excludes whom


def test_a_folder_excludes_what_is_in_it_and_what_it_is_in_and_nothing_else(paths: PathLocks) -> None:
    async def main() -> None:
        held = await paths.acquire(["src/core"])
        assert [await is_free(paths, path) for path in ("src/core", "src/core/a/b.py", "src", ".")] == [False] * 4
        assert [await is_free(paths, path) for path in ("src/core.py", "src/web/a.py", "docs", "src/cor")] == [True] * 4
        await paths.release(held)
        assert await is_free(paths, ".")

    asyncio.run(main())


def test_all_is_reserved_or_nothing(paths: PathLocks) -> None:
    async def main() -> None:
        async with lock_paths(paths._locks, paths._names.root, ["m"]):
            with pytest.raises(LockTimeout):
                await paths.acquire(["a", "m", "z"], timeout_s=0)
            assert await is_free(paths, "a", "z")
            assert len(paths.held) == 0
            with pytest.raises(LockTimeout):
                await paths.acquire(["a", "m"], timeout_s=0.05)
        assert await is_free(paths, ".")

    asyncio.run(main())


def test_a_refusal_says_who_has_what(paths: PathLocks) -> None:
    async def main() -> None:
        await paths.acquire(["src/app.py", "z"], owner="claude-3", purpose="fixing the login")
        with pytest.raises(LockTimeout, match=r"src/app.py, z, fixing the login\) has src") as refused:
            await paths.acquire(["a", "src"], timeout_s=0, owner="codex-1")
        assert f"{os.getpid()} on " in refused.value.owner
        assert "claude-3" in refused.value.owner
        assert "codex-1" not in refused.value.owner
        assert refused.value.path == "a, src"

    asyncio.run(main())


def test_who_asked_first_has_it_first_and_a_file_does_not_overtake_a_folder(locks: Locks, paths: PathLocks) -> None:
    order = []

    async def reserve(place: str) -> None:
        async with lock_paths(locks, paths._names.root, [place]):
            order.append(place)

    async def main() -> None:
        held = await paths.acquire(["src/a"])
        waiting = [asyncio.ensure_future(reserve("src"))]
        await waits(locks)
        waiting.append(asyncio.ensure_future(reserve("src/b")))
        await waits(locks, 2)
        assert order == []
        await paths.release(held)
        await asyncio.gather(*waiting)

    asyncio.run(main())

    assert order == ["src", "src/b"]


def test_a_wait_that_is_cancelled_leaves_nothing_behind(locks: Locks, paths: PathLocks) -> None:
    async def main() -> None:
        held = await paths.acquire(["m"])
        waiting = asyncio.ensure_future(paths.acquire(["a", "m", "z"]))
        await waits(locks)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await is_free(paths, "a", "z")
        await paths.release(held)
        assert await is_free(paths, ".")

    asyncio.run(main())


def test_processes_that_reserve_at_random_never_meet_and_never_wait_in_a_circle(
    tmp_path: Path, repository: Path, nursery: Nursery, locks: Locks
) -> None:
    (tmp_path / "marks").mkdir()

    programs = [nursery.start(f"{PROGRAMS}:contend", str(tmp_path), str(seed), "10") for seed in range(4)]

    assert [program.wait() for program in programs] == [0] * 4
    assert locks.backend("").locks().result() == []


def test_a_process_that_is_killed_holds_nothing(
    tmp_path: Path, repository: Path, nursery: Nursery, paths: PathLocks
) -> None:
    reading, writing = os.pipe()
    holder = nursery.start(f"{PROGRAMS}:hold", str(tmp_path), "src", descriptors={1: writing})
    os.close(writing)
    assert os.read(reading, 1) == b"!"
    os.close(reading)

    async def main() -> Reservation:
        assert not await is_free(paths, "src/a")
        holder.kill()
        return await paths.acquire(["src/a"])

    assert asyncio.run(main()).paths == ("src/a",)


# ---------------------------------------------------------------- losing it


async def seize(paths: PathLocks, locks: Locks, path: str) -> None:
    await locks.backend("").seize_lock(paths._names._name(path))


@pytest.mark.parametrize("part", ["src/app.py", "src"])
def test_a_block_that_loses_a_part_is_cancelled_and_says_so_and_gives_back_the_rest(
    locks: Locks, paths: PathLocks, part: str
) -> None:
    async def main() -> None:
        with pytest.raises(LockLost):  # noqa: PT012 - the block is what is tested
            async with lock_paths(locks, paths._names.root, ["src/app.py"], ttl_s=0.3):
                await seize(paths, locks, part)
                await asyncio.Event().wait()
        assert await is_free(paths, ".")

    asyncio.run(main())


def test_an_error_of_the_block_is_what_it_raises_and_all_is_released(locks: Locks, paths: PathLocks) -> None:
    async def main() -> None:
        for error in (TimeoutError("mine"), ZeroDivisionError()):
            with pytest.raises(type(error)) as raised:
                async with lock_paths(locks, paths._names.root, ["a"]):
                    raise error
            assert raised.value is error
        assert await is_free(paths, ".")

    asyncio.run(main())


def test_a_reservation_that_is_not_kept_ends_when_its_time_is_over_and_not_before(
    locks: Locks, paths: PathLocks
) -> None:
    async def main() -> None:
        held = await paths.acquire(["a"], ttl_s=0.2, keep=False)
        held.extend(3600)
        assert paths.find(held.id) is held
        held.extend(0.05)
        next_one = await paths.acquire(["a"])  # waits until it is over
        assert held.lost
        with pytest.raises(LockLost, match="not extended"):
            held.extend(1)
        with pytest.raises(UsageError, match="no reservation"):
            await paths.release(held.id)
        await paths.release(next_one.id)

    asyncio.run(main())


def test_a_write_under_a_reservation_is_refused_when_a_folder_above_it_was_lost(locks: Locks, paths: PathLocks) -> None:
    store = locks.backend("")

    async def main() -> None:
        held = await paths.acquire(["src/app.py"], owner="old")
        await store.write_states([StateWrite(thread_id="t", expected=0, data=b"1", fences=held.fences)])  # type: ignore[attr-defined]
        assert held.tokens == {"src/app.py": 1}
        await seize(paths, locks, "src")
        with pytest.raises(Fenced):
            await store.write_states([StateWrite(thread_id="t", expected=1, data=b"2", fences=held.fences)])  # type: ignore[attr-defined]

    asyncio.run(main())


def test_a_reservation_is_released_once_and_by_its_id(paths: PathLocks) -> None:
    async def main() -> None:
        held = await paths.acquire(["a", "a/b", "A/c", "d"])
        assert held.paths == ("a", "d")
        await paths.release(held.id)
        with pytest.raises(UsageError, match="no reservation"):
            await paths.release(held)

    asyncio.run(main())


# ---------------------------------------------------------------- names


def test_one_file_has_one_name_however_it_is_written(repository: Path) -> None:
    (repository / "src").mkdir()
    (repository / "link").symlink_to("src")
    names = PathNames(repository)
    one = names.wanted(["src/é.py"]).locks

    for path in ("./src//é.py", "src/../src/é.py", "SRC/É.py", "src/é.py", "src/é.py/", repository / "src" / "é.py"):
        assert [lock[0] for lock in names.wanted([path]).locks] == [lock[0] for lock in one], path
    assert names.normal("link/x") == "src/x"
    assert names.wanted(["."]).paths == ["."]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../x", "not in"),
        ("/etc/passwd", "not in"),
        ("out/x", "leads to"),
        ("", "no path"),
        ("a\0b", "no path"),
        ("src/*.py", "a pattern(.|\n)*'src'"),
        ("**/x", "a pattern(.|\n)*'.'"),
        (".git/config", "git's own"),
    ],
)
def test_a_path_that_cannot_be_reserved_is_refused_with_what_to_do(repository: Path, path: str, why: str) -> None:
    (repository / "out").symlink_to("/etc")

    with pytest.raises(SettingsError, match=why):
        PathNames(repository).wanted([path])


def test_a_file_whose_name_looks_like_a_pattern_can_be_reserved(repository: Path) -> None:
    (repository / "[id].tsx").touch()

    assert PathNames(repository).wanted(["[id].tsx"]).paths == ["[id].tsx"]


def test_no_paths_and_too_many_are_refused_and_long_ones_have_short_names(repository: Path) -> None:
    names = PathNames(repository)
    for paths in ([], [f"f{n}" for n in range(201)]):
        with pytest.raises(SettingsError, match="at once"):
            names.wanted(paths)

    long = ["d" * 100 + f"/{'e' * 200}{n}" for n in range(2)]
    told = [lock[0] for lock in names.wanted(long).locks]

    assert len({*told}) == len(told) == 4
    assert max(map(len, told)) <= LOCK_NAME_CHARS_MAX


def test_the_worktrees_of_a_repository_share_its_names(tmp_path: Path) -> None:
    main = make_repository(tmp_path / "main")
    git(main, "worktree", "add", "--quiet", str(tmp_path / "other"))

    assert PathNames(main).wanted(["a"]) == PathNames(tmp_path / "other").wanted(["a"])
    assert PathNames(tmp_path).wanted(["a"]) != PathNames(main).wanted(["a"])
