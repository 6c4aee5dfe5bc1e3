"""Processes that hold locks, for tests that kill and freeze them. They say on stdout what they did, a line each.

hold     takes the lock by hand, then does what stdin says: extend, release, write, leave
contend  takes the lock again and again, and notes in a file when it enters and when it leaves
append   the same with writes under the fence; now and then it dies or freezes while it has the lock
"""

from __future__ import annotations

import os
import random
import signal
import sys

from sennit.errors import ConcurrentModificationError, Fenced, LockLost
from sennit.model.thread import StateWrite
from sennit.store.lease import Lease
from sennit.store.leases import Lock, Locks
from sennit.store.protocol import Store
from sennit.store.sqlite import SqliteStore

THREAD = "protected"


def open_store(url: str) -> Store:
    if url.startswith("postgresql://"):
        from sennit.store.postgres import PostgresStore

        return PostgresStore(url, durability="normal")
    return SqliteStore(url, durability="normal")


def lock_of(url: str, redis: str, *, ttl_s: float) -> tuple[Store, Lock]:
    store = open_store(url)
    locks = Locks(lambda: store, lambda: redis)
    return store, locks.lock("l", ttl_s=ttl_s, backend=None, purpose="program")


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def write(store: Store, lease: Lease) -> str:
    """Add the token to the protected list; it is read anew, so that nothing but the fence can refuse an old one."""
    while True:
        now = store.state(THREAD).result()
        data = (now.data or b"").strip(b"[]")
        tokens = b"[" + (data + b"," if data else b"") + str(lease.token).encode() + b"]"
        try:
            store.write_states(
                [StateWrite(thread_id=THREAD, expected=now.version, data=tokens, fences=(lease.fence,))]
            ).result()
        except ConcurrentModificationError:
            continue
        except Fenced:
            return "Fenced"
        return "ok"


def hold(url: str, redis: str, ttl_s: str) -> None:
    store, lock = lock_of(url, redis, ttl_s=float(ttl_s))
    say("asking")
    lease = lock.acquire().result()
    say(f"held {lease.token}")
    for line in sys.stdin:
        try:
            match line.strip():
                case "extend":
                    lease.extend().result()
                    said = "ok"
                case "release":
                    lease.release().result()
                    said = "ok"
                case "write":
                    said = write(store, lease)
                case _:
                    break
        except LockLost:
            said = "LockLost"
        say(said)


def contend(url: str, redis: str, history: str, turns: str) -> None:
    _, lock = lock_of(url, redis, ttl_s=60)
    file = os.open(history, os.O_WRONLY | os.O_APPEND)
    for _ in range(int(turns)):
        with lock as lease:
            os.write(file, f"enter {lease.token}\n".encode())
            os.sched_yield()
            os.write(file, f"leave {lease.token}\n".encode())
    say("done")


def append(url: str, redis: str, seed: str, turns: str) -> None:
    chance = random.Random(seed)
    store, lock = lock_of(url, redis, ttl_s=0.5)
    for _ in range(int(turns)):
        lease = lock.acquire().result()
        match chance.choices(["work", "die", "freeze"], [10, 1, 1])[0]:
            case "die":
                say(f"dies {lease.token}")
                os.kill(os.getpid(), signal.SIGKILL)
            case "freeze":
                say(f"freezes {lease.token}")  # it is stopped here, from outside
                sys.stdin.readline()
        say(f"{write(store, lease)} {lease.token}")
        try:
            lease.release().result()
        except LockLost:
            say(f"lost {lease.token}")
    say("done 0")
