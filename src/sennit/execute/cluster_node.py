"""What runs on the nodes of a Ray cluster: bodies, and the agents that keep a sennit worker running there.

    Ray task  ─► run_body ─► runner(function, payload)      arrays come and go beside the payload, not inside
    Ray actor ─► NodeAgent ─► OS thread ─► `python -m sennit worker …`, started again whenever it ends

Ray restarts the actor when its process or node is lost, on a node that has no agent yet. The worker dies with its
actor: it gets SIGTERM from the kernel and drains. It holds its claims by its own lease, of which Ray knows nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sennit.execute import process_child
from sennit.execute.cluster_wire import Brief, Run
from sennit.sync import array_files

if TYPE_CHECKING:
    from sennit.sync.array_files import Array

__all__ = ["NodeAgent", "Outcome", "run_body"]

Outcome = tuple[bytes, "dict[str, Array]"]
"""An encoded `Answer | Failure`, and the arrays of the answer by the path that it names them with."""

RESTART_S: Final = 1.0
RESTART_S_MAX: Final = 30.0
LAST_LINES: Final = 5

_PR_SET_PDEATHSIG: Final = 1  # <sys/prctl.h>

_functions: Final[dict[str, Callable[..., object]]] = {}


def run_body(brief: Brief, run: Run, paths: Sequence[str], *outcomes: Outcome) -> Outcome:
    """Run one body; the life of a Ray task. Never raises: what a body raises is a `Failure`.

    Args:
        paths: the arrays of the payload; each is in the outcome at the same index.
        outcomes: read-only, in shared memory.
    """
    for place in brief.sys_path:
        if place not in sys.path and Path(place).is_dir():
            sys.path.append(place)
    given = {path: outcome[1][path] for path, outcome in zip(paths, outcomes, strict=True)}
    with array_files.carried(Path(brief.folder), given) as carried:
        reply = process_child.serve(process_child.Request(run.handler_ref, run.payload), brief.runner, _functions)
    return reply, carried.taken


class NodeAgent:
    """One sennit worker on this node, kept running. A Ray actor; also usable without Ray.

    Args:
        argv: what follows `python`.
        environment: added to that of this process.
        folder: its working directory, if there is one of this name here.
    """

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
        self._argv = tuple(argv)
        self._environment = {**os.environ, **environment}
        self._folder = folder if Path(folder).is_dir() else None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._exit_code: int | None = None
        self._words: deque[str] = deque(maxlen=LAST_LINES)
        # The worker's parent-death signal fires when the OS thread that started it ends: one that lives as long as we.
        self._os_thread = threading.Thread(target=self._keep_running, name="sennit-agent", daemon=True)
        self._os_thread.start()

    def look(self) -> dict[str, Any]:
        """Return how the worker is: `state`, `pid`, `starts`, `exit_code`, and the last lines of its stderr."""
        with self._lock:
            process = self._process
            return {
                "state": "waiting" if process is None else "running",
                "pid": 0 if process is None else process.pid,
                "starts": self._starts,
                "exit_code": self._exit_code,
                "words": "".join(self._words),
            }

    def stop(self, grace_s: float) -> int | None:
        """End the worker with SIGTERM, which drains; after `grace_s` by force. Return its exit code.

        Called a second time meanwhile, it is the second signal: the worker hands back at once what it runs.
        """
        self._stopping.set()
        self._signal(signal.SIGTERM)
        self._os_thread.join(grace_s)
        if self._os_thread.is_alive():
            self._signal(signal.SIGKILL)
            self._os_thread.join()
        return self._exit_code

    def _signal(self, number: signal.Signals) -> None:
        with self._lock, suppress(ProcessLookupError):
            if self._process is not None:
                self._process.send_signal(number)

    def _keep_running(self) -> None:
        wait_s = RESTART_S
        while not self._stopping.is_set():
            argv = [sys.executable, "-m", __name__, str(os.getpid()), *self._argv]
            with self._lock:
                if self._stopping.is_set():
                    return
                process = self._process = subprocess.Popen(
                    argv, env=self._environment, cwd=self._folder, process_group=0, stderr=subprocess.PIPE
                )
                self._starts += 1
            # Not joined: what the worker has started may hold its stderr open when it has ended.
            threading.Thread(target=self._hear, args=(process,), name="sennit-agent-stderr", daemon=True).start()
            exit_code = process.wait()
            with self._lock:
                self._process, self._exit_code = None, exit_code
            self._stopping.wait(wait_s)
            wait_s = min(2 * wait_s, RESTART_S_MAX)

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        """Pass on what the worker writes to stderr, into the log that Ray keeps of us; remember the end of it."""
        self._words.clear()
        assert process.stderr is not None  # noqa: S101 - it was asked for
        with process.stderr as lines:
            for line in lines:
                text = line.decode(errors="replace")
                self._words.append(text)
                sys.stderr.write(text)
                sys.stderr.flush()


def _become(argv: Sequence[str]) -> None:
    """Become `python argv[1:]`, which gets SIGTERM when its parent, process `argv[0]`, dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == int(argv[0]):  # else it died before we asked to be told
        os.execv(sys.executable, [sys.executable, *argv[1:]])  # noqa: S606 - the same program, without a shell


if __name__ == "__main__":
    _become(sys.argv[1:])
