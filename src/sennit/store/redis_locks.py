"""Locks in Redis, for those who have one: `store.protocol_locks.LockBackend`, without what a store promises about writes.

    calls ─► scripts (`redis_wire`) ─► acks
    waits ─► OS thread `sennit-redis-ear`: BLPOP on this process's own list, until a grant comes or the holder's time is over

Redis forgets: with `appendfsync everysec` the last second of a crash, with asynchronous replication what a failover has not
copied. Then two may hold one lock. So a write must carry the fence, which the *store* checks against the tokens it has seen:
that is what makes it safe, not Redis. The times of grants are its wall clock: one that jumps ends leases early, or late.
A process that dies holds what it holds until its time is over, and costs those behind it in line one `ttl` more.
The scripts make up the names of lists, so a Redis Cluster will not do.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from sennit.errors import LockLost, LockTimeout, StoreError
from sennit.model.lock import FOREIGN, LockGrant, LockHolder, LockRequest, LockView
from sennit.store import redis_lock_scripts as scripts
from sennit.store.redis_wire import Answer, Arguments, RedisWire
from sennit.sync.ack import Ack, resolve_all

_NAMES: Final = b"sennit:locks"
_BLOCK_S_MIN: Final = 0.002  # less is rounded to 0 by some servers, which means for ever
_ID_BITS: Final = 52  # Lua's numbers are doubles
_GONE: Final = "it was given up while it waited"


class _Wait(NamedTuple):
    request: LockRequest
    ack: Ack[LockGrant]


class RedisLocks:
    """Locks in one Redis database.

    Args:
        url: `redis://host:port/0`, `rediss://…` or `unix://…`.

    Raises:
        SettingsError: the extra `redis` is not installed, or the URL cannot be read. Whether there is a server, the first
            call says.
    """

    fence_prefix = FOREIGN

    def __init__(self, url: str) -> None:
        self._wire = RedisWire(url, scripts.SCRIPTS)
        self.url = self._wire.url
        self.now_us = self._wire.now_us
        self._process = secrets.token_hex(8)
        self._ear_key = f"sennit:locks:ear:{self._process}".encode()
        self._changed = threading.Condition()  # guards what follows
        self._waiting: dict[int, _Wait] = {}
        self._names: dict[int, str] = {}  # of all that this process waits for or holds, by id
        self._tokens: dict[tuple[str, int], int] = {}  # → id
        self._over_us: dict[str, int] = {}  # by name: when somebody who waits here is to look, server clock
        self._armed_us: int | None = None  # until when the ear sleeps
        self._closed = False
        self._ear: threading.Thread | None = None

    # ------------------------------------------------------------ the backend's face

    def take_ids(self, n: int) -> Sequence[int]:
        """Return random ids."""
        return [secrets.randbits(_ID_BITS) or 1 for _ in range(n)]

    def acquire_lock(self, request: LockRequest) -> Ack[LockGrant]:
        """Resolve with a grant as soon as the request is first in line and fits."""
        ack: Ack[LockGrant] = Ack()
        with self._changed:
            self._names[request.id] = request.name
            if request.wait:
                self._waiting[request.id] = _Wait(request, ack)

        def read(answer: Answer) -> None:
            _, verdict, *facts = answer
            if verdict == 1:
                token, granted_us, until_us = facts
                self._granted(_Wait(request, ack), token, granted_us=granted_us, until_us=until_us, asked_us=granted_us)
            elif verdict == 0:
                self._wait_until(request.name, facts[0])
            else:
                self._forget(request.id)
                owner = bytes(facts[0]).decode() or "nobody, but others wait ahead"
                ack.reject(LockTimeout(request.name, timeout_s=0.0, owner=owner))

        def failed(done: Ack[None]) -> None:
            try:
                done.wait()
            except BaseException as error:  # noqa: BLE001 - handed on to the waiter
                self._forget(request.id)
                if not ack.done:
                    ack.reject(error)

        arguments = (
            str(request.id), self._process, request.owner, int(request.shared), request.n_max, request.ttl_us,
            int(request.wait),
        )  # fmt: skip
        self._call(scripts.ASK, request.name, arguments, read).add_done_callback(failed)
        return ack

    def extend_lock(self, name: str, token: int, ttl_us: int) -> Ack[LockGrant]:
        """Hold it until `ttl_us` from now."""

        def read(answer: Answer) -> LockGrant:
            _, is_held, *facts = answer
            if not is_held:
                self._let_go(name, token)
                raise LockLost(name, token)
            shared, asked_us, granted_us, until_us = facts
            return LockGrant(
                name=name, token=token, shared=bool(shared), granted_us=granted_us, until_us=until_us,
                waited_us=granted_us - asked_us,
            )  # fmt: skip

        return self._call(scripts.EXTEND, name, (str(token), ttl_us), read)

    def release_lock(self, name: str, token: int) -> Ack[None]:
        """Let go; the next in line has it."""

        def read(answer: Answer) -> None:
            self._let_go(name, token)
            if not answer[1]:
                raise LockLost(name, token)

        return self._call(scripts.RELEASE, name, (str(token),), read)

    def give_up_lock(self, request_id: int) -> Ack[bool]:
        """Wait no longer; release what has come meanwhile."""

        def read(answer: Answer) -> bool:
            wait = self._forget(request_id)
            if wait is not None:
                wait.ack.reject(LockLost(wait.request.name, 0, why=_GONE))
            return bool(answer[1])

        with self._changed:
            name = self._names.get(request_id, "")
        return self._call(scripts.GIVE_UP, name, (str(request_id),), read)

    def locks(self, names: Sequence[str] = ()) -> Ack[list[LockView]]:
        """Return the locks that are held or waited for."""
        every: Ack[list[LockView]] = Ack()

        def look_at(found: list[str]) -> None:
            views = [self._call(scripts.LOOK, name, (), partial(_view, name)) for name in found]
            if not views:
                every.resolve([])

            def looked(_: Ack[LockView]) -> None:
                if not all(ack.done for ack in views) or every.done:
                    return
                try:
                    seen = [ack.wait() for ack in views]
                except StoreError as error:
                    every.reject(error)
                else:
                    used = [view for view in seen if view.token and (names or view.holders or view.waiting)]
                    every.resolve(sorted(used, key=lambda view: view.name))

            if views:
                views[-1].add_done_callback(looked)  # they are answered in order

        if names:
            look_at(sorted({*names}))
        else:
            listed = self._call(scripts.NAMES, "", (), lambda answer: [bytes(name).decode() for name in answer[1]])
            listed.add_done_callback(lambda done: _then(done, look_at, every))
        return every

    def seize_lock(self, name: str) -> Ack[int]:
        """Take a lock away from all who hold it."""
        return self._call(scripts.SEIZE, name, (), lambda answer: int(answer[1]))

    def close(self) -> None:
        """Give up what this process holds and waits for, then end both OS threads. Idempotent."""
        with self._changed:
            mine = [] if self._closed else list(self._names)
            self._closed = True
            waiting, self._waiting = self._waiting, {}
            self._changed.notify_all()
        for request_id in mine:
            self.give_up_lock(request_id)
        self._wake_ear()
        self._wire.close()  # runs all that, or ends the ear's connection
        resolve_all([(wait.ack, None, self._wire.closed()) for wait in waiting.values()])
        if self._ear is not None:
            self._ear.join()

    def _call(self, script: str, name: str, arguments: Arguments, read: Callable[[Answer], Any]) -> Ack[Any]:
        key = b"sennit:lock:" + name.encode()
        keys = (key + b":token", key + b":held", key + b":line", _NAMES)
        return self._wire.call(script, keys, (name, *arguments), read)

    # ------------------------------------------------------------ waiting

    def _granted(self, wait: _Wait, token: int, *, granted_us: int, until_us: int, asked_us: int) -> None:
        with self._changed:
            request = wait.request
            self._waiting.pop(request.id, None)
            self._tokens[request.name, token] = request.id
        grant = LockGrant(
            name=request.name, token=token, shared=request.shared, granted_us=granted_us, until_us=until_us,
            waited_us=granted_us - asked_us,
        )  # fmt: skip
        wait.ack.resolve(grant)

    def _let_go(self, name: str, token: int) -> None:
        with self._changed:
            self._names.pop(self._tokens.pop((name, token), 0), None)

    def _forget(self, request_id: int) -> _Wait | None:
        with self._changed:
            self._names.pop(request_id, None)
            return self._waiting.pop(request_id, None)

    def _wait_until(self, name: str, over_us: int) -> None:
        """Somebody waits: listen, and look when the holder's time is over."""
        if not over_us:
            return  # nobody holds it: then nobody waits
        with self._changed:
            self._over_us[name] = over_us
            if self._ear is None:
                self._ear = threading.Thread(target=self._listen, name="sennit-redis-ear", daemon=True)
                self._ear.start()
            self._changed.notify_all()
            is_late = self._armed_us is not None and over_us < self._armed_us
        if is_late:
            self._wake_ear()

    def _wake_ear(self) -> None:
        """Have the ear look up; nobody waits for the answer, for when it fails the ear's own connection has failed too."""
        self._call(scripts.WAKE, "", (self._process,), len)

    def _listen(self) -> None:
        """The ear: sleeps in BLPOP while somebody here waits."""
        while True:
            with self._changed:
                while not (self._closed or self._is_waited_for()):
                    self._armed_us = None
                    self._changed.wait()
                if self._closed:
                    return
                self._armed_us = min(self._over_us.values())
                block_s = max((self._armed_us - self.now_us()) / 1e6, _BLOCK_S_MIN)
            try:
                popped: Any = self._wire.listener.blpop([self._ear_key], timeout=block_s)
            except Exception as error:  # noqa: BLE001 - every waiter must hear of it
                self._fail(error)
                continue
            if popped is None:
                self._look_at([name for name, us in self._over_us.items() if us <= self.now_us()])
            else:
                self._heard(msgspec.msgpack.decode(popped[1]))

    def _is_waited_for(self) -> bool:
        """Forget the times of names that nobody here waits for; return whether any is left."""
        names = {wait.request.name for wait in self._waiting.values()}
        self._over_us = {name: us for name, us in self._over_us.items() if name in names}
        return bool(self._over_us)

    def _heard(self, message: list[Any]) -> None:
        if len(message) == 1:  # somebody's time is over earlier than it was
            with self._changed:
                names = list(self._over_us)
            self._look_at(names)
            return
        request_id, token, granted_us, until_us, asked_us = message
        with self._changed:
            wait = self._waiting.get(int(request_id))
        if wait is not None:
            self._granted(wait, token, granted_us=granted_us, until_us=until_us, asked_us=asked_us)
        # Else it was given up meanwhile, and that has released it.

    def _look_at(self, names: Sequence[str]) -> None:
        """Have the server pass on what is over; learn when to look next."""
        for name in names:

            def read(answer: Answer, name: str = name) -> None:
                self._wait_until(name, answer[1])

            with self._changed:
                self._over_us.pop(name, None)
            self._call(scripts.POKE, name, (), read).add_done_callback(self._looked)

    def _looked(self, done: Ack[None]) -> None:
        try:
            done.wait()
        except StoreError as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The server has gone, and with it perhaps the line: tell all who wait."""
        with self._changed:
            waiting, self._waiting = self._waiting, {}
            closed = self._closed
        if closed:
            return
        failure = self._wire.explain(error)
        for request_id in waiting:
            self.give_up_lock(request_id)  # it may be there again, and still know them
        resolve_all([(wait.ack, None, failure) for wait in waiting.values()])


def _then(done: Ack[list[str]], go_on: Callable[[list[str]], None], every: Ack[list[LockView]]) -> None:
    try:
        found = done.wait()
    except StoreError as error:
        every.reject(error)
    else:
        go_on(sorted(found))


def _view(name: str, answer: Answer) -> LockView:
    _, token, held, line = answer
    holders = [
        LockHolder(
            id=int(request_id), owner=owner, shared=bool(shared), n_max=n_max, token=int(token_), since_us=since_us,
            until_us=until_us,
        )
        for token_, request_id, owner, shared, n_max, since_us, until_us in _rows(held)
    ]  # fmt: skip
    waiting = [
        LockHolder(id=int(request_id), owner=owner, shared=bool(shared), n_max=n_max, since_us=asked_us)
        for request_id, owner, shared, n_max, asked_us in _rows(line)
    ]
    return LockView(
        name=name,
        token=int(token),
        holders=tuple(sorted(holders, key=lambda holder: holder.token or 0)),
        waiting=tuple(waiting),
    )


def _rows(packed: bytes) -> list[Any]:
    """Return the rows of a table; an empty one is a map to Lua."""
    rows: Any = msgspec.msgpack.decode(packed)
    return list(rows) if isinstance(rows, list) else []
