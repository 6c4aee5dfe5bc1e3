"""Threads remember as if one writer came after the other: histories of real processes on one file, checked.

Four processes with two OS threads each read and write the same two threads; each operation is noted with when it was
called and when it was answered. `linearizable` looks for an order that explains all answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import got
from tests.contract.linearizable import Call, order_of

PROGRAMS = Path(__file__).parent / "programs"
PROCESSES, WRITERS, OPERATIONS, WINDOWS = 4, 2, 5, 40


def call(what: str, called: int, ended: int, **facts: object) -> Call:
    return Call(what, called, ended, **facts)  # type: ignore[arg-type]


def wrote(called: int, ended: int, expected: int, value: int, **facts: object) -> Call:
    """A write that was done."""
    return call("write", called, ended, expected=expected, value=value, version=expected + 1, result=value, **facts)


def saw(called: int, ended: int, version: int, value: int) -> Call:
    return call("read", called, ended, version=version, result=value)


def met(called: int, ended: int, expected: int, actual: int) -> Call:
    """A write that was a conflict."""
    return call("write", called, ended, expected=expected, value=9, version=actual)


GOOD = {
    "nothing happened": [saw(0, 1, 0, 0)],
    "one after the other": [wrote(0, 1, 0, 5), saw(2, 3, 1, 5), wrote(4, 5, 1, 6), met(6, 7, 1, 2)],
    "a read beside a write may see either": [wrote(0, 9, 0, 5), saw(1, 2, 0, 0), saw(3, 4, 1, 5)],
    "of two writes beside each other one is done": [wrote(0, 9, 0, 5), met(0, 9, 0, 1)],
    "the one that ended last may have come first": [
        wrote(0, 9, 0, 5), wrote(1, 8, 1, 6), saw(1, 2, 2, 6),
    ],
    "adds follow on each other": [
        call("add", 0, 9, value=1, version=2, result=3), call("add", 0, 9, value=2, version=1, result=2),
    ],
    "a repeat of an operation gets the version it made": [
        wrote(0, 1, 0, 5, operation_id="o"), wrote(2, 3, 1, 6),
        call("write", 4, 5, expected=2, value=5, operation_id="o", version=1, result=5), saw(6, 7, 2, 6),
    ],
}  # fmt: skip

BROKEN = {
    "a read that is too old": [wrote(0, 1, 0, 5), saw(2, 3, 0, 0)],
    "a read of what nobody had begun to write": [saw(0, 1, 1, 5), wrote(2, 3, 0, 5)],
    "two reads that go back": [wrote(0, 9, 0, 5), saw(1, 2, 1, 5), saw(3, 4, 0, 0)],
    "two writes that made the same version": [wrote(0, 9, 0, 5), wrote(0, 9, 0, 6)],
    "a lost add": [
        call("add", 0, 9, value=1, version=1, result=1), call("add", 0, 9, value=1, version=2, result=1),
    ],
    "a conflict nobody caused": [met(0, 1, 0, 1), wrote(2, 3, 0, 5)],
    "a write that was done although its version had gone": [wrote(0, 1, 0, 5), wrote(2, 3, 1, 6), wrote(4, 5, 1, 7)],
    "an operation that was done twice": [
        wrote(0, 1, 0, 5, operation_id="o"), wrote(2, 3, 1, 5, operation_id="o"),
    ],
    "a value nobody wrote": [wrote(0, 1, 0, 5), saw(2, 3, 1, 6)],
    "two reads that disagree about an order": [
        wrote(0, 1, 0, 5), wrote(2, 9, 1, 6), wrote(2, 9, 2, 7), saw(2, 3, 3, 7), saw(4, 5, 2, 6),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_the_checker_finds_an_order_in_a_sound_history(name: str) -> None:
    order = order_of(GOOD[name])

    assert order is not None
    assert sorted(order) == sorted(GOOD[name])


@pytest.mark.parametrize("name", BROKEN)
def test_the_checker_finds_no_order_in_a_broken_history(name: str) -> None:
    assert order_of(BROKEN[name]) is None


def test_the_checker_is_fast_where_much_happens_at_once() -> None:
    many = [call("add", 0, 10**6, value=1, version=n + 1, result=n + 1) for n in range(150)]

    assert order_of(many) is not None
    assert order_of([*many, many[-1]]) is None


# ---------------------------------------------------------------- real processes


@contextmanager
def processes(program: str, path: Path, *arguments: object) -> Iterator[list[subprocess.Popen[str]]]:
    """Start four of a program; all have opened the file when they are handed over."""
    with ExitStack() as stack:
        started = []
        for who in range(PROCESSES):
            argv = [sys.executable, str(PROGRAMS / program), str(path), str(who), *map(str, arguments)]
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            started.append(stack.enter_context(process))
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
        yield started


def record(path: Path, *, windows: int = WINDOWS) -> dict[str, list[Call]]:
    """Let the processes work window by window; return what they saw, by thread."""
    histories: dict[str, list[Call]] = {}
    with processes("state_history.py", path, WRITERS, OPERATIONS) as started:
        for window in range(windows):
            for process in started:
                assert process.stdin is not None
                process.stdin.write(f"w{window}\n")
            for process in started:
                assert process.stdout is not None
                for thread_id, *facts in json.loads(process.stdout.readline()):
                    histories.setdefault(thread_id, []).append(Call(*facts))
        for process in started:
            process.communicate(timeout=30)
    return histories


def test_what_four_processes_read_and_write_at_once_is_linearizable(tmp_path: Path) -> None:
    histories = record(tmp_path / "tasks.db")

    broken = {thread_id: calls for thread_id, calls in histories.items() if order_of(calls) is None}
    assert broken == {}

    everything = [made for calls in histories.values() for made in calls]
    assert len(everything) == PROCESSES * WRITERS * OPERATIONS * WINDOWS
    # It was a race: calls overlapped, writes met conflicts, operations were repeated.
    ordered = [sorted(calls, key=lambda made: made.called_ns) for calls in histories.values()]
    overlaps = sum(earlier.ended_ns > later.called_ns for calls in ordered for earlier, later in pairwise(calls))
    conflicts = [made for made in everything if made.result is None]
    repeats = [made for made in everything if made.operation_id and made.result and made.version <= made.expected]
    assert min(overlaps, len(conflicts)) > WINDOWS
    assert len(repeats) > WINDOWS // 10


def test_the_checker_objects_when_a_recorded_history_is_changed_a_little(tmp_path: Path) -> None:
    histories = record(tmp_path / "tasks.db", windows=10)
    changed = 0
    for calls in histories.values():
        late_ns = max(made.ended_ns for made in calls) + 1
        last = max(made.version for made in calls)
        for n, made in enumerate(calls):
            if made.what == "read" or made.result is None or made.version in (0, last):
                continue
            rest = [*calls[:n], *calls[n + 1 :]]
            if sum((other.version, other.result) == (made.version, made.result) for other in rest):
                continue  # a read of it or a repeat of its operation: as good as the write itself, for some changes
            assert order_of(rest) is None, "a write is missing"
            assert order_of([*rest, made._replace(called_ns=late_ns, ended_ns=late_ns + 1)]) is None, "it came later"
            assert order_of([*rest, made._replace(result=made.result + 1)]) is None, "it wrote something else"
            changed += 1

    assert changed > 10


def test_every_append_of_eight_writers_in_four_processes_is_there_or_was_a_conflict(tmp_path: Path) -> None:
    path, appends = tmp_path / "tasks.db", 40
    with processes("state_appends.py", path, WRITERS, appends) as started:
        said: list[list[str]] = []
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
        for process in started:
            said += [line.split() for line in process.communicate(timeout=50)[0].splitlines()]

    done = [name for what, name in said if what == "done"]
    with closing(SqliteStore(path)) as store:
        now = got(store.state("t"))
        history = got(store.state_history("t", limit=3))

    assert len(said) == PROCESSES * WRITERS * appends
    assert 0 < len(done) < len(said)
    kept = (now.data or b"").decode().split()
    assert sorted(kept) == sorted(done)
    assert now.version == len(done)
    assert [view.data for view in history] == [
        "".join(f"{name} " for name in kept[: len(kept) - n]).encode() for n in range(3)
    ]
