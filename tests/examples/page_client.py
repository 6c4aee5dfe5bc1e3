"""`sennit` and `python` of a page's shell: have the nursery fork one, and end as it ends.

Usage: python -I -S page_client.py SOCKET LOCK script|command WORDS…

SOCKET is the nursery's, inherited; LOCK is a file: two that ask at once ask in turn.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.crash.nursery_wire import receive, send


def main(descriptor: str, lock: str, what: str, *words: str) -> int:
    """Return the exit code, as a shell has it."""
    with socket.socket(fileno=int(descriptor)) as nursery, Path(lock).open() as turn:

        def ask(asked: dict[str, Any], descriptors: list[int]) -> int:
            fcntl.flock(turn, fcntl.LOCK_EX)
            send(nursery, asked, descriptors)
            answer, _ = receive(nursery)
            fcntl.flock(turn, fcntl.LOCK_UN)
            return int(answer["number"])

        asked = {"call": f"tests.examples.page_programs:{what}", "argv": words, "folder": str(Path.cwd())}
        pid = ask(asked | {"environ": dict(os.environ), "descriptors": [0, 1, 2]}, [0, 1, 2])
        ended = os.pidfd_open(pid)
        select.select([ended], [], [])
        code = ask({"wait": pid}, [])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
