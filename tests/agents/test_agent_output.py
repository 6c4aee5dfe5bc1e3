"""Tailing what an agent writes: every line once, in order, whatever happens to the file meanwhile. Real files and processes."""

# ruff: noqa: ASYNC220, ASYNC240 - some bytes into the page cache, and a fork: what is read is what matters here

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sennit.errors import AgentError
from sennit.execute.agent_output import CHUNK_BYTES, LINE_BYTES_MAX, Lines, Tail, read_lines, tail
from tests.runtime.provider_facts import on_a_loop

FILES = 100

# Appends numbered lines to many files, torn into pieces as a pipe would tear them.
WRITER = """
import os, random, sys
folder, files, lines = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(7)
opened = [os.open(f"{folder}/{n}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for n in range(files)]
for line in range(lines):
    for one in chance.sample(opened, len(opened)):
        text = b"%d\\n" % line
        cut = chance.randrange(len(text))
        os.write(one, text[:cut])
        os.write(one, text[cut:])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stdout.log"


def pending() -> asyncio.Future[None]:
    """Something that makes a file complete when it is resolved."""
    return asyncio.get_running_loop().create_future()


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def now(path: Path, from_offset: int = 0) -> list[bytes]:
    return list(read_lines(path, from_offset))


# ---------------------------------------------------------------- lines


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (b"", []),
        (b"one\ntwo\n", [b"one", b"two"]),
        (b"one\r\ntwo\r\n", [b"one", b"two"]),
        (b"one\ntwo", [b"one", b"two"]),
        (b"one\n\n\ntwo\n", [b"one", b"", b"", b"two"]),
        (b"a\rb\r\r\n\r", [b"a\rb\r", b""]),
        (b"\x00\xff\xc3\n", [b"\x00\xff\xc3"]),
    ],
)
def test_lines_come_without_their_ends_and_the_last_one_also_without_a_newline(
    path: Path, written: bytes, lines: list[bytes]
) -> None:
    path.write_bytes(written)

    assert now(path) == lines


def test_however_chunks_are_cut_the_lines_and_offsets_are_the_same() -> None:
    chance = random.Random(11)
    data = b"".join(bytes(chance.choices(b"ab\r\n", k=30)) for _ in range(200))
    whole = Lines()
    expected = [(line, whole.offset) for line in [*whole.feed(data), *whole.rest()]]

    for size in (1, 2, 3, 7, 64):
        lines = Lines()
        found = [(line, lines.offset) for i in range(0, len(data), size) for line in lines.feed(data[i : i + size])]
        found += [(line, lines.offset) for line in lines.rest()]
        assert [line for line, _ in found] == [line for line, _ in expected]
        assert lines.offset == len(data)

    assert [data[:1] for data, _ in expected]


def test_a_line_above_the_bound_comes_cut_with_a_mark_and_the_next_one_whole(path: Path) -> None:
    long = 3 * LINE_BYTES_MAX + 17
    path.write_bytes(b"before\n" + b"x" * long + b"\nafter\n" + b"y" * long)

    before, cut, after, last = now(path)

    assert (before, after) == (b"before", b"after")
    assert len(cut) == len(last) == LINE_BYTES_MAX
    assert cut.endswith(f"xx … {long:,} bytes, cut by sennit".encode())
    assert last.startswith(b"yy")


def test_a_line_of_exactly_the_bound_is_not_cut(path: Path) -> None:
    path.write_bytes(b"x" * LINE_BYTES_MAX + b"\n")

    assert now(path) == [b"x" * LINE_BYTES_MAX]


# ---------------------------------------------------------------- a file that is written meanwhile


@on_a_loop
async def test_a_file_that_is_not_there_yet_is_waited_for(path: Path) -> None:
    complete = pending()
    async with tail(path / "deeper" / "stdout.log", until=complete) as lines:
        first = asyncio.create_task(anext(lines))
        await asyncio.sleep(0)
        (path / "deeper").mkdir(parents=True)
        await asyncio.sleep(0)
        (path / "deeper" / "stdout.log").write_bytes(b"here\n")

        assert await first == b"here"


@on_a_loop
async def test_a_line_comes_when_its_newline_does(path: Path) -> None:
    path.write_bytes(b"half")
    async with tail(path) as lines:
        waiting = asyncio.create_task(anext(lines))
        await asyncio.sleep(0)
        append(path, b" a line")
        await asyncio.sleep(0)
        was_early = waiting.done()
        append(path, b"\nnext")

        assert await waiting == b"half a line"
        assert not was_early
        assert lines.offset == len(b"half a line\n")


@on_a_loop
async def test_until_ends_it_with_all_that_is_in_the_file(path: Path) -> None:
    complete = pending()
    path.write_bytes(b"one\n")
    lines = tail(path, until=complete)
    assert await anext(lines) == b"one"
    waiting = asyncio.create_task(anext(lines))
    await asyncio.sleep(0)

    append(path, b"two\nlast")
    complete.set_result(None)

    assert [await waiting, *[line async for line in lines]] == [b"two", b"last"]
    assert lines.offset == len(b"one\ntwo\nlast")
    with pytest.raises(StopAsyncIteration):
        await anext(lines)


@on_a_loop
async def test_what_is_written_just_before_until_is_not_missed_however_late_it_comes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both happen right after the tail has found nothing more: what it knew of `until` by then is old."""
    complete = pending()
    path.write_bytes(b"one\n")
    lines = tail(path, until=complete)
    more = lines._file.more

    def more_late() -> Iterator[bytes] | None:
        found = more()
        if found is None and not complete.done():
            append(path, b"two\n")
            complete.set_result(None)
        return found

    monkeypatch.setattr(lines._file, "more", more_late)

    assert [line async for line in lines] == [b"one", b"two"]


@on_a_loop
async def test_a_file_that_cannot_be_watched_any_more_is_an_error_and_no_silence(path: Path) -> None:
    waiting = asyncio.create_task(anext(tail(path / ("x" * 300))))  # too long for a name, once there is its folder
    await asyncio.sleep(0)

    path.mkdir()

    with pytest.raises(OSError, match="File name too long"):
        await waiting


@pytest.mark.parametrize("how", ["cancelled", "failed"])
@on_a_loop
async def test_until_that_is_cancelled_or_failed_ends_it_as_well(path: Path, how: str) -> None:
    complete = pending()
    lines = tail(path, until=complete)
    waiting = asyncio.create_task(anext(lines, b"nothing more"))
    await asyncio.sleep(0)

    if how == "failed":
        complete.set_exception(OSError("the reason is its owner's"))
        complete.exception()
    else:
        complete.cancel()

    assert await waiting == b"nothing more"


@on_a_loop
async def test_a_later_tail_goes_on_where_an_earlier_one_was(path: Path) -> None:
    complete = pending()
    path.write_bytes(b"one\r\ntwo\nthree\n")
    complete.set_result(None)
    async with tail(path) as lines:
        await anext(lines)
        await anext(lines)

    assert [line async for line in tail(path, lines.offset, complete)] == [b"three"]


@on_a_loop
async def test_a_file_that_is_cut_short_is_read_from_its_start_again(path: Path) -> None:
    path.write_bytes(b"a long line of an earlier life\nand hal")
    async with tail(path) as lines:
        await anext(lines)
        waiting = asyncio.create_task(anext(lines))
        await asyncio.sleep(0)

        path.write_bytes(b"anew\n")

        assert await waiting == b"anew"


@on_a_loop
async def test_of_a_file_that_is_replaced_the_rest_is_read_before_the_new_one(path: Path) -> None:
    path.write_bytes(b"old\n")
    async with tail(path) as lines:
        await anext(lines)
        append(path, b"older\nno newline")
        path.with_name("new").write_bytes(b"new\n")
        path.with_name("new").rename(path)

        assert [await anext(lines) for _ in range(3)] == [b"older", b"no newline", b"new"]


@on_a_loop
async def test_a_file_that_is_removed_is_read_to_its_end_and_its_successor_too(path: Path) -> None:
    complete = pending()
    with path.open("wb", buffering=0) as writer:
        writer.write(b"one\n")
        lines = tail(path, until=complete)
        assert await anext(lines) == b"one"
        path.unlink()
        writer.write(b"written after that\n")
        assert await anext(lines) == b"written after that"
    path.write_bytes(b"successor\n")
    complete.set_result(None)

    assert [line async for line in lines] == [b"successor"]


@pytest.mark.parametrize("trap", ["pipe", "link", "folder"])
@on_a_loop
async def test_what_is_no_file_of_its_own_is_refused_and_blocks_nobody(path: Path, tmp_path: Path, trap: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret\n")
    match trap:
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to(secret)
        case _:
            path.mkdir()

    with pytest.raises(AgentError, match="cannot be read"):
        await anext(tail(path))


# ---------------------------------------------------------------- who reads


@on_a_loop
async def test_a_tail_that_is_cancelled_while_it_waits_loses_nothing(path: Path) -> None:
    path.write_bytes(b"one\n")
    async with tail(path) as lines:
        await anext(lines)
        waiting = asyncio.create_task(anext(lines))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        append(path, b"two\n")

        assert await anext(lines) == b"two"


@on_a_loop
async def test_a_tail_that_nobody_has_any_more_is_closed(path: Path) -> None:
    complete = pending()
    path.write_bytes(b"one\n")
    lines: Tail | None = tail(path, until=complete)
    assert lines is not None
    await anext(lines)
    watch = lines._watch
    assert watch is not None

    lines = None

    assert watch.is_closed
    assert not complete._callbacks


@on_a_loop
async def test_a_flood_leaves_the_loop_to_others(path: Path) -> None:
    complete = pending()
    chunks = 50
    path.write_bytes(b"0123456\n" * (chunks * CHUNK_BYTES // 8))
    complete.set_result(None)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    read = 0
    async for _ in tail(path, until=complete):
        read += 1
    task.cancel()

    assert read == chunks * CHUNK_BYTES // 8
    assert turns >= chunks


@on_a_loop
async def test_memory_is_that_of_a_chunk_and_a_line_whatever_the_size_of_the_file(path: Path) -> None:
    """Twenty megabytes of lines, and one line of twenty. tracemalloc counts what is allocated; the rest is the kernel's."""
    complete = pending()
    with path.open("wb") as file:
        for _ in range(20):
            file.write(b"x" * 1023 * 1024 + b"y" * 1023 + b"\n")
        for _ in range(20):
            file.write(b"z" * 1024 * 1024)
    complete.set_result(None)
    tracemalloc.start()
    tracemalloc.reset_peak()
    try:
        before, _ = tracemalloc.get_traced_memory()
        count = 0
        async for _ in tail(path, until=complete):
            count += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert count == 21
    assert peak - before < 8 * LINE_BYTES_MAX  # parts of a line, the whole, the cut one, and the one before it


@on_a_loop
async def test_of_a_hundred_files_that_another_process_writes_every_line_comes_once_and_in_order(
    tmp_path: Path,
) -> None:
    complete = pending()
    n_lines = 20

    async def read(lines: AsyncIterator[bytes]) -> list[int]:
        return [int(line) async for line in lines]

    readers = [asyncio.create_task(read(tail(tmp_path / f"{n}.log", until=complete))) for n in range(FILES)]
    await asyncio.sleep(0)
    argv = [sys.executable, "-I", "-S", "-c", WRITER, str(tmp_path), str(FILES), str(n_lines)]
    with subprocess.Popen(argv) as writer:
        code = await asyncio.to_thread(writer.wait)
    complete.set_result(None)

    assert code == 0
    assert await asyncio.gather(*readers) == [list(range(n_lines))] * FILES


@on_a_loop
async def test_a_line_is_read_while_its_writer_goes_on_and_waits_for_the_answer(path: Path) -> None:
    """A reader that only found it by luck, or at the end, would leave both waiting for ever."""
    program = f"import os, sys\nfor n in range(50):\n os.write(1, b'%d\\n' % n); sys.stdin.readline()\nopen({str(path)!r}, 'ab')"
    with (
        path.open("wb") as out,
        subprocess.Popen([sys.executable, "-I", "-S", "-c", program], stdin=subprocess.PIPE, stdout=out) as writer,
    ):
        assert writer.stdin is not None
        async with tail(path) as lines:
            for n in range(50):
                assert await anext(lines) == b"%d" % n
                writer.stdin.write(b"\n")
                writer.stdin.flush()
