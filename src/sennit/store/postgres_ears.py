"""How processes of several machines hear each other: sockets to neighbours, NOTIFY to all others.

    ring ─┬─ near ─► datagram                                    (same host and user: `wakeup`)
          └─ far  ─► collected ─► NOTIFY, one transaction ─► LISTEN of the other ─► on_rung(hints)

One connection per process listens and notifies, used by one OS thread that sleeps on it. A commit with a NOTIFY takes a lock
that the whole database shares, so it is never part of a transaction that writes tasks: what was collected while the last
was on its way goes out together, without waiting for the disk.

Whether notifications arrive is tried out, not believed: every `PROBE_S` the process notifies itself. A connection that is half
dead, or a pooler that gave it to somebody else, fails that; then it listens anew, and until it hears again the process looks
by itself every second (`is_listening` is False, and `sennit status` says so).
"""

# ruff: noqa: D102 - the promises stand in store/ears.py, once

from __future__ import annotations

import logging
import os
import random
import re
import select
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

import psycopg

from sennit.store.ears import LOOK_AGAIN_S, Ear, Missed, OnRung
from sennit.store.peers import home_of
from sennit.store.postgres_notices import Notices
from sennit.store.postgres_server import PostgresServer
from sennit.store.postgres_wire import open_connection
from sennit.store.wakeup import Bell, ring
from sennit.sync.forks import drop_after_fork

PROBE_S: Final = 30.0
ANSWER_S: Final = 5.0
_EVERYTHING: Final = 255
_RETRY_MIN_S: Final = 0.1
_RETRY_MAX_S: Final = 5.0
_ADDRESS: Final = re.compile(r"pg:(?P<channel>\w+)\|(?P<home>[^|]*)\|(?P<socket>[^|]*)")

_log = logging.getLogger("sennit")


class Address(NamedTuple):
    """What stands in the row of a process."""

    channel: str
    home: str
    socket: str

    def __str__(self) -> str:
        return f"pg:{self.channel}|{self.home}|{self.socket}"


class PostgresEars:
    """`ears.Ears` for one store object.

    Args:
        folder: of the life locks: who has the same is near.
        sockets: False to reach neighbours by NOTIFY too.
        listen_url: a direct connection to the server, when the store's own URL leads to a pooler.
        probe_s: how often it is tried out whether notifications arrive.
        answer_s: how long the server may take for an answer.
    """

    def __init__(
        self,
        server: PostgresServer,
        folder: Path,
        *,
        sockets: bool = True,
        listen_url: str | None = None,
        probe_s: float = PROBE_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._folder = folder
        self._sockets = sockets
        url = listen_url or server.url
        self._line = Line(url, server.name, detour=server.url, probe_s=probe_s, answer_s=answer_s)

    @property
    def is_listening(self) -> bool:
        """True while notifications are known to arrive, or nobody needs them."""
        return self._line.is_listening

    def tell(self, on_change: Callable[[bool], object]) -> None:
        """Have `on_change(is_listening)` called whenever that changes, on the line's OS thread; it must not block."""
        self._line.on_change = on_change

    def listen(self, name: str, on_rung: OnRung, missed: Missed) -> Ear:
        bell = Bell.open(self._folder, name) if self._sockets else None
        channel = f"sennit_{self._folder.name[:8]}_{name}_{os.urandom(4).hex()}"
        address = Address(channel, _neighbourhood(self._folder), bell.address if bell else "")
        return self._line.listen(PostgresEar(address, bell=bell, line=self._line, on_rung=on_rung, missed=missed))

    def ring(self, addresses: Iterable[str], hints: int) -> None:
        near, far = [], []
        home = _neighbourhood(self._folder) if self._sockets and self._folder.is_dir() else None
        for address in addresses:
            found = _ADDRESS.fullmatch(address)
            if found is None:
                near.append(address)
            elif found["socket"] and found["home"] == home:
                near.append(found["socket"])
            else:
                far.append(found["channel"])
        if near:
            ring(near, hints)
        if far:
            self._line.notify(far, hints)

    def close(self) -> None:
        self._line.close()


class PostgresEar:
    """This process's ear: its part of the line."""

    def __init__(self, address: Address, *, bell: Bell | None, line: Line, on_rung: OnRung, missed: Missed) -> None:
        self.address = str(address)
        self.channel = address.channel
        self.bell = bell
        self.on_rung = on_rung
        self.missed = missed
        self._line = line

    def wake(self) -> None:
        self._line.wake()

    def close(self) -> None:
        self._line.hang_up()


class Line:
    """The connection that listens and notifies, and the OS thread that sleeps on it and on the socket."""

    def __init__(self, url: str, name: str, *, detour: str, probe_s: float, answer_s: float) -> None:
        self._probe_s = probe_s
        self._answer_s = answer_s
        self._detour = detour if detour != url else ""
        self._is_opening = False
        self._opened: Notices | psycopg.Error | None = None
        self._url = url
        self._name = name
        self._lock = threading.Lock()
        self._outbox: dict[str, int] = {}
        self._ear: PostgresEar | None = None
        self._thread: threading.Thread | None = None
        self._wake_in, self._wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._is_over = False
        self._notices: Notices | None = None
        self._sent: dict[str, int] = {}  # on its way
        self._missed_all = False  # nobody listened for a while
        self._retry_s = _RETRY_MIN_S
        self._retry_at_s = 0.0
        self._probe_at_s = 0.0  # when the next probe is sent
        self._echo_by_s: float | None = None  # when the one that was sent must have come back
        self.is_listening = True
        self.on_change: Callable[[bool], object] = bool
        drop_after_fork(self)

    # ------------------------------------------------------------ from any OS thread

    def listen(self, ear: PostgresEar) -> PostgresEar:
        """Begin to listen for `ear`."""
        with self._lock:
            self._ear = ear
        self._start()
        return ear

    def notify(self, channels: Iterable[str], hints: int) -> None:
        """Send soon."""
        with self._lock:
            for channel in channels:
                self._outbox[channel] = self._outbox.get(channel, 0) | hints
        self._start()

    def wake(self) -> None:
        """Let the OS thread look around."""
        with suppress(OSError):  # full: it is about to look; closed: it is over
            os.write(self._wake_out, b"\0")

    def hang_up(self) -> None:
        """Nobody here listens any more; what is to be sent still goes out."""
        with self._lock:
            ear, self._ear = self._ear, None
        if ear is not None and ear.bell is not None:
            ear.bell.close()
        self.wake()

    def close(self) -> None:
        """Send what is left, then end."""
        self._is_over = True
        self.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        for descriptor in (self._wake_in, self._wake_out):
            with suppress(OSError):
                os.close(descriptor)

    def drop_after_fork(self) -> None:
        """In a forked child: the OS thread is not there, and the connection is the parent's."""
        self._thread = self._notices = self._ear = self._opened = None
        self._is_opening = False

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._is_over:
                self._thread = threading.Thread(target=self._run, name="sennit-ear", daemon=True)
                self._thread.start()
        self.wake()

    # ------------------------------------------------------------ on its OS thread

    def _run(self) -> None:
        while True:
            if self._notices is None and time.monotonic() >= self._retry_at_s:
                self._connect()
            self._use()
            busy = self._outbox or (self._notices is not None and self._notices.is_asking)
            if self._is_over and not self._is_opening and (self._notices is None or not busy):
                break
            self._sleep()
        self._drop()

    def _connect(self) -> None:
        ear, opened = self._ear, self._opened
        if opened is None:
            if not self._is_opening and (ear is not None or self._outbox):
                self._is_opening = True
                threading.Thread(target=self._open, name="sennit-ear-opens", daemon=True).start()
            return
        self._opened, self._is_opening = None, False
        if isinstance(opened, psycopg.Error):
            self._fail(opened)
            return
        self._notices = opened
        try:
            if ear is not None:
                opened.listen(ear.channel, within_s=self._answer_s)
        except psycopg.Error as error:
            self._fail(error)
            return
        self._retry_s = _RETRY_MIN_S
        self._probe_at_s = time.monotonic()  # at once: only what has come back is believed
        self._echo_by_s = None
        self._missed_all = True

    def _open(self) -> None:
        """On an OS thread of its own: a server that does not answer takes its time, and neighbours want to be heard."""
        try:
            self._opened = Notices(self._url, connect_timeout_s=self._answer_s)
        except psycopg.Error as error:
            self._opened = error
        self.wake()

    def _use(self) -> None:
        """Hear what came; send what was collected; probe."""
        notices, ear = self._notices, self._ear
        if notices is None:
            return
        try:
            payloads = notices.hear()
            if not notices.is_asking:
                self._sent.clear()
                self._send(notices)
        except psycopg.Error as error:
            self._fail(error)
            return
        now_s = time.monotonic()
        if payloads:
            self._echo_by_s, self._probe_at_s = None, now_s + self._probe_s * random.uniform(0.8, 1.2)
            if not self.is_listening and not notices.is_pooled:
                self.is_listening = True
                self.on_change(True)
                _log.warning("notifications of %s arrive again", self._name)
        elif self._echo_by_s is not None and now_s >= self._echo_by_s:
            self._fail(TimeoutError(f"a probe has not come back within {self._answer_s:g} s"))
        if notices.is_pooled and ear is not None:  # what comes back may come to the session that a pooler keeps
            self._is_deaf("a pooler stands between; set listen_url to a direct connection")
        hints = 0
        for payload in payloads:
            hints |= int(payload)
        if payloads and self._missed_all:  # we listen since before this came
            self._missed_all, hints = False, _EVERYTHING
        if hints and ear is not None:
            ear.on_rung(hints)

    def _send(self, notices: Notices) -> None:
        """Send what was collected, and a probe when it is time."""
        ear, now_s = self._ear, time.monotonic()
        with self._lock:
            self._sent, self._outbox = self._outbox, {}
        if ear is not None and self._echo_by_s is None and now_s >= self._probe_at_s:
            self._sent[ear.channel] = self._sent.get(ear.channel, 0)
            self._echo_by_s = now_s + self._answer_s
        if self._sent:
            notices.ask(_calls(self._sent), within_s=self._answer_s)

    def _fail(self, error: Exception) -> None:
        self._drop()
        self._echo_by_s = None
        with self._lock:  # what was on its way may not have arrived
            for channel, hints in self._sent.items():
                self._outbox[channel] = self._outbox.get(channel, 0) | hints
            self._sent = {}
            if self._detour and self._outbox:  # others may hear, and do not look by themselves
                around, self._outbox = self._outbox, {}
                threading.Thread(target=self._send_around, args=(around,), name="sennit-ear-sends", daemon=True).start()
        self._retry_at_s = time.monotonic() + self._retry_s * random.uniform(0.5, 1.0)
        self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)
        if self._ear is not None:
            self._is_deaf(" ".join(str(error).split()))

    def _is_deaf(self, why: str) -> None:
        if self.is_listening:
            self.is_listening = False
            self.on_change(False)
            _log.warning("notifications of %s do not arrive (%s); looking every second", self._name, why)

    def _send_around(self, outbox: dict[str, int]) -> None:
        """On an OS thread of its own: notify by the way of the store, a pooler perhaps, on which nobody can listen."""
        try:
            with closing(open_connection(self._detour)) as connection:
                connection.execute(_calls(outbox).encode())
        except psycopg.Error:
            with self._lock:
                for channel, hints in outbox.items():
                    self._outbox[channel] = self._outbox.get(channel, 0) | hints

    def _drop(self) -> None:
        notices, self._notices = self._notices, None
        if notices is not None:
            notices.close()

    def _sleep(self) -> None:
        """Sleep until something comes in, somebody has something to send, or it is time for the next look."""
        ear, notices = self._ear, self._notices
        waiter = select.poll()
        waiter.register(self._wake_in, select.POLLIN)
        bell = None if ear is None else ear.bell
        if bell is not None and bell.fileno() != -1:
            waiter.register(bell.fileno(), select.POLLIN)
        if notices is not None:
            waiter.register(notices.fileno(), select.POLLIN | (select.POLLOUT if notices.must_flush else 0))
        looks = ear is not None and (ear.missed() or not self.is_listening)
        events = waiter.poll(self._wait_ms(looks=looks))
        with suppress(BlockingIOError):
            os.read(self._wake_in, 4096)
        if ear is None:
            return
        hints = bell.drain() if bell is not None and bell.fileno() != -1 else 0
        if hints:
            ear.on_rung(hints)
        elif looks and not events:
            ear.on_rung(0 if self.is_listening else _EVERYTHING)

    def _wait_ms(self, *, looks: bool) -> float | None:
        """Return for how long to sleep at most; None is for ever."""
        now_s = time.monotonic()
        until: list[float] = [LOOK_AGAIN_S] if looks else []
        if self._notices is None:
            if not self._is_opening and (self._ear is not None or self._outbox):
                until.append(max(0.0, self._retry_at_s - now_s))
        else:
            by_s = [self._notices.answer_by_s, self._echo_by_s]
            if self._ear is not None and self._echo_by_s is None and not self._notices.is_asking:
                by_s.append(self._probe_at_s)
            until += [max(0.0, at_s - now_s) for at_s in by_s if at_s is not None]
        return 1000 * min(until) + 1 if until else None


def _calls(outbox: dict[str, int]) -> str:
    """Return a transaction that notifies, and does not wait for the disk."""
    calls = "; ".join(f"SELECT pg_notify('{channel}', '{hints}')" for channel, hints in outbox.items())
    return f"BEGIN; SET LOCAL synchronous_commit = off; {calls}; COMMIT"


def _neighbourhood(folder: Path) -> str:
    """Return what processes share that reach each other's sockets: containers may share a folder and not a network."""
    try:
        network = os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116 - not a file, a namespace
    except OSError:
        network = 0  # no namespaces here
    return f"{home_of(folder)}:{network:x}"
