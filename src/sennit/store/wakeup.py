"""Bells: how one process tells another on the same host to look at the store, now.

    commit ──► ring([address, …], Hint.READY) ──1 byte──► Bell ──► callback(hints) ──► look at the rows

A bell carries no data. Rows are the truth, hints only say where to look first, so a bell may lose messages: a receiver
that is gone is skipped, and the timer for the next known deadline is always armed. What a bell must not do is lose one
*kind* of hint silently: a receiver whose queue was full answers with all hints, because it cannot know what was dropped.

Permission: an abstract address (Linux) has no owner, so any local user of the same network namespace can ring it. All
they gain is that we look at our own rows once more, and nothing here is filtered by user: a filter would let strangers
fill the queue with bytes that wake nobody. A socket file is made mode 0600 and can be rung by its own user (and root).
Processes that share the store but not the network namespace (two containers) cannot reach each other's abstract
addresses: give them socket files, `Bell.open(…, abstract=False)`.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import secrets
import socket
import sys
import threading
from contextlib import suppress
from enum import IntFlag
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from sennit.errors import SettingsError, UsageError
from sennit.sync.forks import drop_after_fork

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterable

__all__ = ["Bell", "Hint", "ring"]

ABSTRACT: Final = sys.platform == "linux"
"""Whether the kernel has abstract socket addresses, which vanish with their process."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,48}")
_PATH_BYTES_MAX = 103  # sun_path is 104 bytes on BSD and macOS, 108 on Linux, with the closing zero.
_DRAINED_MAX = 4096  # A burst beyond this is finished in the next turn of the loop, so that others run in between.


class Hint(IntFlag):
    """Where to look first. They add up; a receiver sees the sum of all that came since it last looked."""

    READY = 1
    """A task became ready."""
    DONE = 2
    """A watched task may have ended."""
    STOP = 4
    """A running attempt must stop."""
    TIMER = 8
    """An earlier deadline exists."""
    PEER = 16
    """A process joined."""
    INBOX = 32
    """A question was asked, changed or closed."""
    ROOM = 64
    """A queue that was full may have room; a call that waits for a permit has an answer."""
    PRESSED = 128
    """An urgent task is ready and nobody has a slot for it."""


_ALL = 255


def ring(addresses: Iterable[str], hints: int) -> None:
    """Send `hints` to every address; never blocks, never fails. From any OS thread.

    A receiver that is gone is skipped, one whose queue is full is about to look anyway.
    """
    byte = bytes((hints,))
    for address in addresses:
        _sender.send(byte, address)


class Bell:
    """This process's receiver: one datagram socket. Made by `open`; `address` belongs in the process's row."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        """Take over a bound, non-blocking socket."""
        self.address = address
        self._socket = sock
        self._full_at = _queue_length()
        self._loop: AbstractEventLoop | None = None
        drop_after_fork(self)

    @classmethod
    def open(cls, directory: Path, name: str, *, abstract: bool = ABSTRACT) -> Self:
        """Bind a new bell.

        Args:
            directory: for the socket file, when `abstract` is False; it should be private to the user.
            name: shown in the address, for people; a random part makes the address unique.
            abstract: use the Linux abstract namespace instead of a file.

        Raises:
            SettingsError: `name` has other characters than letters, digits, `.`, `_`, `-`, or the path is too long.
            OSError: the socket cannot be made there.
        """
        if not _NAME.fullmatch(name):
            raise SettingsError(
                f"{name!r} cannot name a bell",
                why="it becomes part of a socket address",
                fix="use 1 to 48 letters, digits, dots, underscores or dashes",
            )
        unique = f"{name}-{secrets.token_hex(8)}"
        address = f"@sennit/{unique}" if abstract else str(directory.absolute() / f"{unique}.bell")
        if len(os.fsencode(address)) > _PATH_BYTES_MAX:
            raise SettingsError(
                f"the socket path {address} is longer than {_PATH_BYTES_MAX} bytes",
                why="the operating system's socket addresses are that short",
                fix="keep the database in a directory with a shorter path",
            )
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.bind(_to_kernel(address))
            if not abstract:
                Path(address).chmod(0o600)
        except BaseException:
            sock.close()
            raise
        return cls(sock, address)

    def fileno(self) -> int:
        """Return the descriptor to wait on; -1 after `close`."""
        return self._socket.fileno()

    def drain(self) -> int:
        """Return the sum of all hints that arrived since the last call, 0 when there were none. Never blocks."""
        hints = 0
        for received in range(_DRAINED_MAX):
            try:
                hints |= self._socket.recv(1)[0]
            except BlockingIOError:
                return hints | _ALL if received >= self._full_at else hints
            except IndexError:
                continue  # An empty datagram, not from us.
        return hints | _ALL

    def attach(self, loop: AbstractEventLoop, callback: Callable[[int], None]) -> None:
        """Call `callback(hints)` on `loop` whenever the bell was rung.

        Raises:
            UsageError: it is attached already.
        """
        if self._loop is not None:
            raise UsageError("this bell already has a listener", fix="detach() it first")
        self._loop = loop
        loop.add_reader(self._socket, self._on_rung, callback)

    def detach(self) -> None:
        """Call nobody any more. Harmless when not attached."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket)
        self._loop = None

    def close(self) -> None:
        """Give the address up; a ring to it is skipped from now on. Harmless when closed."""
        self.detach()
        if self._socket.fileno() != -1:
            self._socket.close()
            _unlink(self.address)

    def drop_after_fork(self) -> None:
        """In a forked child: close the copy, or rings to a dead parent would seem to arrive."""
        self._socket.close()

    def _on_rung(self, callback: Callable[[int], None]) -> None:
        hints = self.drain()
        if hints:
            callback(hints)


class _Sender:
    """The process-wide sending socket, made by the first ring."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        drop_after_fork(self)
        atexit.register(self._close)

    def send(self, byte: bytes, address: str) -> None:
        target = _to_kernel(address)
        with self._lock:
            try:
                self._open().sendto(byte, target)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                    self._send_from_a_fresh_socket(byte, target)
                elif error.errno == errno.ECONNREFUSED:
                    _unlink(address)  # Bound once by a process that is dead: names are never used again.
                # Whatever else: this receiver cannot be reached, and the rows say what it missed.

    def drop_after_fork(self) -> None:
        self._close()
        self._lock = threading.Lock()

    def _send_from_a_fresh_socket(self, byte: bytes, target: str) -> None:
        """Tell a full receiver from a sender that is out of credit.

        The kernel charges unread datagrams to the socket that *sent* them. A few stopped processes would use up the
        buffer of ours, and then rings to healthy receivers fail too. A new socket starts with a full credit.
        """
        self._close()
        with suppress(OSError):  # Still full: the receiver has a queue of hints to wake up to.
            self._open().sendto(byte, target)

    def _open(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        return self._socket

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _to_kernel(address: str) -> str:
    """Return the address as the kernel wants it; printable is ours."""
    return "\0" + address[1:] if address.startswith("@") else address


def _unlink(address: str) -> None:
    if not address.startswith("@"):
        Path(address).unlink(missing_ok=True)


def _queue_length() -> int:
    """Return how many received datagrams prove that others may have been dropped."""
    try:
        return int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text(encoding="ascii"))
    except OSError:
        return 8  # No such knob: the queues known are longer than this, and a needless look is cheap.


_sender = _Sender()
