"""Fake agents for tests: one of each shape at its desk, spoken to by the adapter for the real program.

    adapter.launch ─► argv, environment, stdin ─► the fake program ─► lines in files ─► adapter.reader ─► events, end

No supervisor is between: what is tested is the program and the adapter.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec

from sennit.execute.adapters.base import Adapter, AgentRun, Exit
from sennit.execute.adapters.claude import Claude
from sennit.execute.adapters.codex import Codex
from sennit.execute.adapters.gemini import Gemini
from sennit.model.agent import AgentEvent, AgentUsage, RunEnd
from sennit.testing.fakeagent import FakeAgent, Shape

SHAPES: tuple[Shape, ...] = ("claude", "codex", "gemini")
PATIENCE_S = 50.0  # less than pytest's


class Seen(msgspec.Struct):
    """One run: what was read of it, and how it ended."""

    events: list[AgentEvent]
    end: RunEnd
    exit: Exit
    lines: list[bytes]

    def of(self, kind: str) -> list[AgentEvent]:
        return [event for event in self.events if event.kind == kind]


class Running(msgspec.Struct):
    """A run that was started."""

    run: AgentRun
    process: subprocess.Popen[bytes]


class FakeDesk:
    """A place for one session of an agent, and its runs."""

    def __init__(self, folder: Path, adapter: Adapter, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.cwd = folder / "work"
        self.adapter = adapter
        self.session_id = adapter.new_session_id()
        self.usage = AgentUsage()
        self._runs = 0
        self._environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", **(environ or {})}
        self.cwd.mkdir(parents=True)

    def start(self, prompt: str, *, resume: bool = False, decisions: Mapping[str, bool] | None = None) -> Running:
        """Start a run; its output goes into files."""
        self._runs += 1
        folder = self.folder / f"run{self._runs}"
        folder.mkdir(mode=0o700)
        run = AgentRun(
            prompt=prompt,
            session_id=self.session_id,
            is_resume=resume,
            cwd=self.cwd,
            folder=folder,
            decisions=decisions or {},
            usage=self.usage,
        )
        launch = self.adapter.launch(run)
        (folder / "stdin").write_bytes(launch.stdin or b"")
        environ = {**self._environ, **launch.environ}
        with (
            (folder / "stdin").open("rb") as given,
            (folder / "stdout.log").open("wb") as out,
            (folder / "stderr.log").open("wb") as err,
        ):
            process = subprocess.Popen(
                launch.argv, cwd=self.cwd, env=environ, stdin=given, stdout=out, stderr=err, start_new_session=True
            )
        return Running(run, process)

    def finish(self, running: Running, *, cause: str = "") -> Seen:
        """Wait for its end and read it; `cause` is why we ended it."""
        run, code = running.run, running.process.wait(PATIENCE_S)
        ended = Exit(code=code, cause=cause) if code >= 0 else Exit(signal=-code, cause=cause)
        reader = self.adapter.reader(run)
        lines = (run.folder / "stdout.log").read_bytes().splitlines()
        events = [event for line in lines for event in reader.feed(line)]
        for line in (run.folder / "stderr.log").read_bytes().splitlines():
            events += reader.feed_error(line)
        end = reader.end(ended)
        self.session_id = end.session_id or self.session_id
        self.usage = end.usage
        return Seen(events, end, ended, lines)

    def run(self, prompt: str, *, resume: bool = False, decisions: Mapping[str, bool] | None = None) -> Seen:
        """Run it to its end."""
        return self.finish(self.start(prompt, resume=resume, decisions=decisions))


def kill(running: Running) -> None:
    """Kill it and what it has started, with SIGKILL."""
    os.killpg(running.process.pid, signal.SIGKILL)


def wait_until_it_is_there(path: Path) -> None:
    """Wait for a file that an agent makes."""
    subprocess.run(["/bin/sh", "-c", 'until [ -e "$0" ]; do sleep 0.01; done', path], check=True, timeout=PATIENCE_S)


def adapter_of(agent: FakeAgent) -> Adapter:
    """Return the adapter that takes it for the real program."""
    kinds: dict[str, type[Claude | Codex | Gemini]] = {"claude": Claude, "codex": Codex, "gemini": Gemini}
    return kinds[agent.shape](program=agent.program)


def desk_of(agent: FakeAgent, folder: Path) -> FakeDesk:
    """Return a desk for one session of it; its files are in `folder`/work."""
    return FakeDesk(folder, adapter_of(agent), agent.environ)
