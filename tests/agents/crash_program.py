"""A worker that dies by SIGKILL before the so-many-th line that it executes of what runs an agent's task."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

from tests.agents.agents_program import serve

FILES = ("agent_body.py", "agent_run.py")


def serve_until_line(folder: str, line: str) -> None:
    """Work; die before this line, counted from 1 over all lines of `FILES` that are executed."""
    left = int(line)

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                print(f"{frame.f_code.co_name}:{frame.f_lineno}", flush=True)  # noqa: T201 - where, for who looks for a bug
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    def on_call(frame: FrameType, _: str, __: Any) -> Any:
        return on_line if frame.f_code.co_filename.endswith(FILES) else None

    sys.settrace(on_call)
    serve(folder, "claude", "yes")
