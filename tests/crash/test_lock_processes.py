"""Locks between real processes that are killed and frozen; judged by tokens and by what was stored, never by clocks."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sennit.store.leases import Lock
from sennit.store.protocol import Store
from sennit.store.row_store import RowStore
from sennit.sync.clock import monotonic_s
from tests.crash import lock_programs
from tests.crash.nursery import ROOT, Forked, Nursery

AT_ONCE_S = 20.0  # far below the ttl of those who are killed while they hold
LONG_S = "600"
THAWED_S = 5.0  # one that was next for the server's write lock when it was frozen keeps all others waiting


@dataclass
class Backend:
    """What gives out the locks, and the store beside it."""

    kind: str
    url: str
    redis: str = ""

    def lock(self) -> Lock:
        store, lock = lock_programs.lock_of(self.url, self.redis, ttl_s=30)
        self.stores.append(store)
        return lock

    stores: list[Store] = field(default_factory=list)


class Process:
    """One of the programs."""

    def __init__(self, nursery: Nursery, program: str, backend: Backend, *argv: str) -> None:
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()
        call = f"tests.crash.lock_programs:{program}"
        self.forked: Forked = nursery.start(call, backend.url, backend.redis, *argv, descriptors={0: reads, 1: writes})
        os.close(reads)
        os.close(writes)
        self._lines = os.fdopen(self._from, encoding="utf-8")

    def said(self) -> str:
        """Return the next line; "" when the process has ended."""
        return self._lines.readline().rstrip("\n")

    def held(self) -> int:
        """Wait until it has the lock; return the token."""
        assert self.said() == "asking"
        return int(self.said().removeprefix("held "))

    def does(self, what: str) -> str:
        """Have it do something; return what came of it."""
        self.tell(what)
        return self.said()

    def tell(self, what: str) -> None:
        """Have it go on."""
        os.write(self._to, f"{what}\n".encode())

    def signal(self, number: int) -> None:
        os.kill(self.forked.pid, number)

    def close(self) -> None:
        self.forked.kill()
        self._lines.close()
        os.close(self._to)


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else str(tmp_path / "locks.db")
    redis = request.getfixturevalue("redis") if request.param == "redis" else ""
    made = Backend(request.param, url, redis)
    yield made
    for store in made.stores:
        store.close()


@pytest.fixture
def start(nursery: Nursery, backend: Backend) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []
    asking = threading.Lock()  # the nursery answers one at a time

    def start(program: str, *argv: str) -> Process:
        with asking:
            started.append(process := Process(nursery, program, backend, *argv))
            return process

    yield start
    for process in started:
        process.close()


def wait_for_line(backend: Backend, n: int, *, token: int) -> None:
    """Wait until so many wait for the lock, or somebody has had it after `token`: its time was over."""
    lock = backend.lock()
    while len((now := lock.view().result()).waiting) < n and now.token == token:
        threading.Event().wait(0.005)  # sleep: nobody is told when somebody stands in line


def freeze(backend: Backend, process: Process) -> None:
    """Stop a process while nobody writes: inside a transaction, or next in line for one, it would keep the write lock."""
    if backend.kind == "postgres":
        store = backend.stores[0]
        assert isinstance(store, RowStore)
        store.put(lambda *_: stop(process)).result()
        return
    with Path(f"{backend.url}-pen.gate").open("rb") as gate, Path(f"{backend.url}-pen").open("rb") as body:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(body, fcntl.LOCK_EX)
        stop(process)


def stop(process: Process) -> None:
    process.signal(signal.SIGSTOP)
    status = Path(f"/proc/{process.forked.pid}/stat")
    while status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "T":
        os.sched_yield()


# ---------------------------------------------------------------- killed


def test_when_the_holder_is_killed_the_next_in_line_has_it(backend: Backend, start: Callable[..., Process]) -> None:
    """On this host at once, though its time is long; Redis does not notice, and waits until it is over."""
    holder = start("hold", "1" if backend.kind == "redis" else LONG_S)
    token = holder.held()
    waiter = start("hold", LONG_S)
    assert waiter.said() == "asking"
    wait_for_line(backend, 1, token=token)
    killed_s = monotonic_s()

    holder.forked.kill()

    assert int(waiter.said().removeprefix("held ")) > token
    assert monotonic_s() - killed_s < AT_ONCE_S
    assert waiter.does("write") == "ok"


def test_one_that_is_killed_while_it_waits_keeps_nobody_waiting(
    backend: Backend, start: Callable[..., Process]
) -> None:
    holder = start("hold", LONG_S)
    token = holder.held()
    dead = start("hold", "1" if backend.kind == "redis" else LONG_S)
    assert dead.said() == "asking"
    wait_for_line(backend, 1, token=token)
    waiter = start("hold", LONG_S)
    assert waiter.said() == "asking"
    wait_for_line(backend, 2, token=token)

    dead.forked.kill()
    assert holder.does("release") == "ok"

    assert int(waiter.said().removeprefix("held ")) > token


def test_who_does_not_wait_gets_it_soon_after_the_holder_was_killed(
    backend: Backend, start: Callable[..., Process]
) -> None:
    holder = start("hold", "1" if backend.kind == "redis" else LONG_S)
    token = holder.held()
    holder.forked.kill()

    lease = backend.lock().acquire(timeout_s=AT_ONCE_S).result()

    assert lease.token > token


# ---------------------------------------------------------------- frozen


def test_what_a_holder_does_that_was_frozen_past_its_time_is_refused(
    backend: Backend, start: Callable[..., Process]
) -> None:
    frozen = start("hold", "1")
    old = frozen.held()
    assert frozen.does("write") == "ok"
    backend.lock()
    freeze(backend, frozen)
    other = start("hold", LONG_S)
    new = other.held()
    assert other.does("write") == "ok"

    frozen.signal(signal.SIGCONT)

    assert [frozen.does(what) for what in ("write", "extend", "release")] == ["Fenced", "LockLost", "LockLost"]
    assert other.does("write") == "ok"
    assert other.does("release") == "ok"
    assert stored(backend) == [old, new, new]


def stored(backend: Backend) -> list[int]:
    """Return the tokens of all writes that were accepted, in order."""
    if not backend.stores:
        backend.lock()
    tokens: list[int] = json.loads(backend.stores[0].state(lock_programs.THREAD).result().data or b"[]")
    return tokens


# ---------------------------------------------------------------- races


def test_many_processes_on_one_lock_are_never_inside_together(
    backend: Backend, start: Callable[..., Process], tmp_path: Path
) -> None:
    history = tmp_path / "history"
    history.touch()
    processes = [start("contend", str(history), "15") for _ in range(6)]

    assert [process.said() for process in processes] == ["done"] * 6

    lines = history.read_text(encoding="utf-8").splitlines()
    assert faults(lines) == []
    assert len(lines) == 2 * 6 * 15


def faults(lines: list[str]) -> list[str]:
    """Return what is wrong in a history: one inside at a time, and later ones have greater tokens."""
    found: list[str] = []
    inside, newest = 0, 0
    for line in lines:
        what, text = line.split()
        token = int(text)
        if what == "enter":
            if inside:
                found.append(f"{token} entered while {inside} was inside")
            if token <= newest:
                found.append(f"{token} entered after {newest}")
            inside, newest = token, max(newest, token)
        else:
            if inside != token:
                found.append(f"{token} left while {inside} was inside")
            inside = 0
    return found


def test_the_checker_of_histories_finds_faults() -> None:
    assert faults(["enter 1", "leave 1", "enter 2", "leave 2"]) == []
    assert faults(["enter 1", "enter 2", "leave 1", "leave 2"])
    assert faults(["enter 2", "leave 2", "enter 1", "leave 1"])
    assert faults(["enter 1", "leave 2"])


@pytest.mark.parametrize("seed", [2, 6])  # four die and five are frozen, or six
def test_while_holders_die_and_freeze_no_old_write_comes_after_a_newer_one(
    backend: Backend, start: Callable[..., Process], seed: int
) -> None:
    """Whoever dies is replaced; whoever is frozen is thawed when somebody else has written after it."""
    backend.lock()
    accepted: list[int] = []
    fenced: list[int] = []
    events: list[str] = []
    changed = threading.Condition()
    busy = [4]  # followers whose process can still take the lock

    def follow(n: int) -> None:
        for life in range(100):
            process = start("append", f"{seed}/{n}/{life}", "8")
            while line := process.said():
                what, token = line.split()[0], int(line.split()[1])
                if what == "freezes":
                    freeze(backend, process)
                with changed:
                    events.append(line)
                    accepted.extend([token] if what == "ok" else [])
                    fenced.extend([token] if what == "Fenced" else [])
                    busy[0] -= what in {"freezes", "done"}
                    changed.notify_all()
                    if what == "freezes":
                        changed.wait_for(lambda token=token: max(accepted, default=0) > token or not busy[0], THAWED_S)  # type: ignore[misc]
                        busy[0] += 1
                if what == "freezes":
                    process.signal(signal.SIGCONT)
                    process.tell("go")
                if what == "done":
                    return

    with ThreadPoolExecutor(4) as followers:
        for following in [followers.submit(follow, n) for n in range(4)]:
            following.result()

    tokens = stored(backend)
    assert tokens == sorted(tokens), "an old holder has written after a newer one"
    assert set(accepted) <= set(tokens), "a write that was accepted is not there"
    assert not set(fenced) & set(tokens)
    assert any(event.startswith("dies") for event in events)
    assert fenced, events


def test_a_process_that_ends_without_letting_go_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "locks.db"
    program = (
        "import sys; from tests.crash.lock_programs import lock_of;"
        f"_, lock = lock_of({str(path)!r}, '', ttl_s=600); print(lock.acquire().result().token)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr

    _, lock = lock_programs.lock_of(str(path), "", ttl_s=30)

    assert lock.acquire(timeout_s=AT_ONCE_S).result().token == 2
