"""A nursery whose children have the MCP SDK imported: that takes a second of a core, and a fork some milliseconds.

`python -m tests.mcp.cradle FD` is the process; `Cradle` starts it and asks it as a `Nursery`.
"""

from __future__ import annotations

import gc
import importlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import sennit
from tests.crash.nursery import ROOT, Nursery, nurse

PRELOADED = (
    "mcp",
    "sennit.cli.main",
    "sennit.cli.mcp",
    "sennit.cli.opening",
    "sennit.integrations.mcp.http",
    "sennit.integrations.mcp.server",
    "sennit.integrations.mcp.stdio",
    "sennit.store.sqlite",
    "tests.mcp.programs",
)


class Cradle(Nursery):
    """Starts servers and clients that are to be killed."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._socket, theirs = socket.socketpair()
        path = os.pathsep.join([str(Path(sennit.__file__).parents[1]), str(ROOT)])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.mcp.cradle", str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=[theirs.fileno()],
            )


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    sys.exit(nurse(socket.socket(fileno=int(sys.argv[1])))())
