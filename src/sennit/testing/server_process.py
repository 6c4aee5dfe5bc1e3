"""A server program in a folder of its own: started, stopped, killed, frozen, and gone when we are.

    start ─► running ─► stop | kill ─► stopped ─► start (same folder, same port) …  close: the folder goes too

What a server has in common is here; what PostgreSQL and Redis are called and told is in `servers`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from sennit.errors import StoreUnavailable, UsageError
from sennit.testing import server_keeper
from sennit.testing.server_folder import account_to_use, free_port, new_folder, reachable

__all__ = ["Server"]

START_S: Final = 60.0
STOP_S: Final = 20.0
LOG_LINES: Final = 20


class Server(ABC):
    """One server on this machine. Its methods are sync and return when what they say is a fact.

    Use it as a context manager. It listens on 127.0.0.1 and in its own folder only, without passwords: whoever has an
    account on this machine may come in, so put nothing there that you would not show them. When our process dies, in
    whatever way, the server ends and its folder is removed.
    """

    name: str
    quit_signal: signal.Signals  # ends it at once, with all its children
    stop_signal: signal.Signals  # ends it in order
    ready_text: str  # of the log line that says that clients may come
    bind_text: str  # of the log line that says that the port is taken

    def __init__(self, *, in_memory: bool = False) -> None:
        self.account = account_to_use()
        self.folder, lock = new_folder(self.name, self.account, in_memory=in_memory)
        self._lock: int | None = lock
        self.port = free_port()
        self.pid = 0  # of the server's first process; 0 while it is stopped
        self._keeper: subprocess.Popen[bytes] | None = None
        self._frozen: list[psutil.Process] = []
        self._prepared = False
        self._was_ready = False

    # ---------------------------------------------------------------- what a kind of server says

    @abstractmethod
    def prepare_argv(self) -> list[str]:
        """Return what is run once in a new folder, or nothing."""

    @abstractmethod
    def run_argv(self) -> list[str]:
        """Return the server's command line; it stays in the foreground and logs to its output."""

    # ---------------------------------------------------------------- its life

    @property
    def log(self) -> Path:
        """What the server has written."""
        return self.folder / "server.log"

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended, in whatever way."""
        return self._keeper is not None and self._keeper.poll() is None

    def start(self) -> Self:
        """Start it and wait until clients may come.

        Raises:
            StoreUnavailable: it ended or said nothing for 60 s; the message ends with its log.
            UsageError: it is running, or was closed.
        """
        if self.running:
            raise UsageError(f"{self.name} is running already, on port {self.port}")
        if self._lock is None:
            raise UsageError(f"{self.name} was closed", why="its folder is gone", fix="make a new one")
        if self._keeper is not None:
            self._forget()  # it ended by itself
        program = Path(self.run_argv()[0])
        if self.account is not None and not reachable(program.parent, self.account):
            raise StoreUnavailable(
                f"{program} cannot be started as another account than root",
                why=f"{self.name} must not run as root, and a folder above the program is closed to others",
                fix="install it for the whole system, or run as an ordinary user",
            )
        while not self._try_to_start():
            self.port = free_port()  # somebody was faster
        return self

    def stop(self) -> None:
        """End it in order and wait until all its processes have. Nothing happens if it is stopped.

        What has not ended after 20 s is killed.
        """
        if self._keeper is None:
            return
        self.thaw()
        if self.running:  # the keeper has not reaped it, so the pid is its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, self.stop_signal)
        try:
            self._keeper.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        else:
            self._forget()

    def kill(self) -> None:
        """Kill all its processes with SIGKILL and wait until they are gone, as a power cut would. The files stay."""
        if self._keeper is None:
            return
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._keeper.wait(STOP_S)
        self._forget()

    def restart(self) -> None:
        """Start it again on the same files and port; stop it before, if it runs."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop all its processes with SIGSTOP: connections stay open and nobody answers."""
        self._frozen = self._processes()

    def thaw(self) -> None:
        """Let a frozen server go on."""
        for process in reversed(self._frozen):  # the first one last, or it would take the others for hung
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self._frozen = []

    def close(self) -> None:
        """Stop it and remove its folder. A second time nothing happens."""
        self.stop()
        if self._lock is not None:
            server_keeper.clean_up(self.folder)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.running else "stopped"
        return f"<{type(self).__name__} 127.0.0.1:{self.port} {state} {self.folder}>"

    # ---------------------------------------------------------------- inside

    def _try_to_start(self) -> bool:
        """Return False if somebody else has the port. Once it has been ready on a port it never moves to another."""
        orders = server_keeper.Orders(
            owner_pid=os.getpid(),
            account=self.account,
            folder=str(self.folder),
            prepare=[] if self._prepared else self.prepare_argv(),
            run=self.run_argv(),
            ready=self.ready_text,
            quit_signal=self.quit_signal,
        )
        with self.log.open("ab") as log:
            log_bytes = log.tell()
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", server_keeper.__file__, json.dumps(orders)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[] if self._lock is None else [self._lock],  # held until the last of us two is gone
                start_new_session=True,  # Ctrl-C is ours; the server stops after those who use it
            )
        said = _said_until_ready(self._keeper)
        self.pid = next((int(line.removeprefix("pid ")) for line in said if line.startswith("pid ")), 0)
        self._prepared = self._prepared or self.pid > 0
        if "ready" in said:
            self._was_ready = True
            return True
        self.kill()
        text = self.log.read_bytes()[log_bytes:].decode(errors="replace")
        if self.bind_text in text and not self._was_ready:
            return False
        raise StoreUnavailable(
            f"{self.name} did not start in {self.folder}",
            why="its log ends with:\n    " + "\n    ".join(text.splitlines()[-LOG_LINES:]),
            fix="mend what it names and try again; run_argv() is its command line",
        )

    def _processes(self) -> list[psutil.Process]:
        """Return all its processes, frozen, so that none of them can start another; the server itself first."""
        if self._keeper is None or not self.running:
            return []
        keeper = psutil.Process(self._keeper.pid)
        known: list[psutil.Process] = []
        while True:
            with contextlib.suppress(psutil.NoSuchProcess):
                fresh = [process for process in keeper.children(recursive=True) if process not in known]
                for process in fresh:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.suspend()
                known += fresh
                if fresh:
                    continue
            return known

    def _forget(self) -> None:
        assert self._keeper is not None  # noqa: S101 - callers have looked
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            if pipe is not None:
                pipe.close()
        self._keeper, self._frozen, self.pid = None, [], 0


def _said_until_ready(keeper: subprocess.Popen[bytes]) -> list[str]:
    """Return the keeper's lines up to "ready"; without it, the keeper has ended or `START_S` have passed."""
    assert keeper.stdout is not None  # noqa: S101 - for the type checker
    said = b""
    deadline_s = time.monotonic() + START_S
    while not said.endswith(b"ready\n"):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([keeper.stdout], [], [], left_s)[0]:
            break
        piece = os.read(keeper.stdout.fileno(), 4096)
        if not piece:
            break
        said += piece
    return said.decode().splitlines()
