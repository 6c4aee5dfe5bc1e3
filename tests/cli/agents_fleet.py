"""A store with agents, as the process that works on them has it: claimed and noted as a worker would do it, real folders."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sennit.execute.agent_proc import stat_of
from sennit.model.agent import AgentStatus, AgentView
from sennit.model.task import Claimed
from sennit.store.protocol import Store
from sennit.sync.clock import boot_id
from sennit.testing.contract_tools import Rig, got, running_loop

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\r"  # a title, a cleared screen, a colour, a turned direction


def claude(kind: str, **told: Any) -> bytes:
    """One line as the program writes it."""
    return json.dumps({"type": kind, **told}).encode() + b"\n"


def says(text: str) -> bytes:
    """It says something."""
    return claude("assistant", message={"role": "assistant", "content": [{"type": "text", "text": text}]})


def uses(tool: str, **given: Any) -> bytes:
    """It begins to use a tool."""
    content = [{"type": "tool_use", "id": "call-1", "name": tool, "input": given}]
    return claude("assistant", message={"role": "assistant", "content": content})


RESULT = claude("result", subtype="success", is_error=False, result="all is done", session_id="s", num_turns=1)


def process_facts(pid: int) -> dict[str, Any]:
    """What a view says of a process of this host."""
    stat = stat_of(pid)
    assert stat is not None
    return {"pid": pid, "started_ticks": stat.ticks, "boot_id": boot_id()}


class Fleet:
    """A store with agents, as the process that works on them has it."""

    def __init__(self, store: Store, rig: Rig, root: Path) -> None:
        self.store = store
        self.rig = rig
        self.root = root

    def begin(
        self, status: AgentStatus = "working", *, stdout: bytes = b"", stderr: bytes = b"", **facts: Any
    ) -> Claimed:
        """Start the task of an agent, with what its first run has written so far."""
        task = self.rig.start()
        self.note(task, status, stdout=stdout, stderr=stderr, **facts)
        return task

    def note(
        self, task: Claimed, status: AgentStatus = "working", *, run: int = 1, stdout: bytes = b"", stderr: bytes = b"",
        **facts: Any,
    ) -> None:  # fmt: skip
        """Say how an agent is."""
        folder = self.folder(task.id, run)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (("stdout.log", stdout), ("stderr.log", stderr)):
            with (folder / name).open("ab") as file:
                file.write(data)
        usual: dict[str, Any] = {
            "agent": "writer",
            "adapter": "claude",
            "host": socket.gethostname(),
            "since_us": self.store.now_us(),
        }
        view = AgentView(**usual | facts, task_id=task.id, status=status, run=run, folder=str(folder))
        assert got(self.store.note_agent(task.claim, view))

    def ended(self, **facts: Any) -> Claimed:
        """An agent that has done its task."""
        task = self.begin("done", **facts)
        self.rig.succeed(task)
        return task

    def append(self, task: Claimed, data: bytes, run: int = 1) -> None:
        """Have its program write more."""
        with (self.folder(task.id, run) / "stdout.log").open("ab") as file:
            file.write(data)

    def folder(self, task_id: int, run: int = 1) -> Path:
        """Where a run keeps what it writes."""
        return self.root / str(task_id) / str(run)


@contextmanager
def fleet_of(store: Store, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Work on a store, which is that of commands in this folder; it is closed at the end."""
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("SENNIT_")] + ["NO_COLOR"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SENNIT_DB", url)
    with running_loop() as loop:
        yield Fleet(store, Rig(store, loop), folder / "fleet.db.agents")
        store.close()
