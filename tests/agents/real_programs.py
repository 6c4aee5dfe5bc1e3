"""Runs the real claude and codex for tests, against a fake provider on loopback, with nothing of the user's.

    adapter.launch ─► argv, environment ─► the program, in a home and config folder of its own ─► lines ─► adapter.reader

Each program is found on PATH or by SENNIT_TEST_CLAUDE, SENNIT_TEST_CODEX. A proxy that nobody answers stands between it and
every host but loopback, and it is told not to report, sync or update.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sennit.execute.adapters.base import Adapter, AgentRun, Exit
from sennit.execute.adapters.lines import added
from sennit.model.agent import AgentEvent, AgentUsage, RunEnd
from sennit.testing.provider import FakeProvider
from sennit.testing.provider_tools import Said

NOBODY = "http://127.0.0.1:9"  # the port "discard", closed
ALONE = {
    "ALL_PROXY": NOBODY,
    "HTTPS_PROXY": NOBODY,
    "HTTP_PROXY": NOBODY,
    "NO_PROXY": "127.0.0.1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
    "LANG": "C.UTF-8",
}
WAIT_S = 100.0  # to its end, on a machine that is very busy


def program(name: str, variable: str) -> str:
    """Return where a program is; skips the test when it is nowhere."""
    found = os.environ.get(variable) or shutil.which(name)
    if not found:
        pytest.skip(f"the program {name} is not on PATH, and {variable} does not say where it is")
    return found


class Model:
    """Answers for a provider, one after the other, and keeps what it was sent.

    Args:
        answers: one for each call; the last one for all that come after.
    """

    def __init__(self, *answers: Said) -> None:
        self.requests: list[dict[str, Any]] = []
        self._answers = list(answers)

    def __call__(self, request: dict[str, Any]) -> Said:
        self.requests.append(request)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class Seen(msgspec.Struct):
    """One run: what was read of it, and how it ended."""

    events: list[AgentEvent]
    end: RunEnd

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def of(self, kind: str) -> list[AgentEvent]:
        return [event for event in self.events if event.kind == kind]


class Desk:
    """A home for one agent in a test, and its runs one after the other.

    Args:
        provider: it is served by.
        environ: of the program, besides what keeps it alone.
    """

    def __init__(self, folder: Path, adapter: Adapter, provider: FakeProvider, environ: Mapping[str, str]) -> None:
        self.cwd = folder / "work"
        self.adapter = adapter
        self.provider = provider
        self.session_id = adapter.new_session_id()
        self.usage = AgentUsage()
        self._folder = folder
        self._runs = 0
        ours = {name: os.environ[name] for name in ("PATH", "TZ") if name in os.environ}
        self._environ = {**ours, "HOME": str(folder), **ALONE, **environ}
        self.cwd.mkdir(parents=True)

    def start(
        self, prompt: str, *, resume: bool = False, decisions: Mapping[str, bool] | None = None
    ) -> tuple[AgentRun, subprocess.Popen[bytes]]:
        """Start a run; its output goes into files."""
        self._runs += 1
        folder = self._folder / f"run{self._runs}"
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
        with (
            (folder / "stdin").open("rb") as given,
            (folder / "stdout.log").open("wb") as out,
            (folder / "stderr.log").open("wb") as err,
        ):
            process = subprocess.Popen(
                launch.argv,
                cwd=self.cwd,
                env={**self._environ, **launch.environ},
                stdin=given if launch.stdin is not None else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        return run, process

    def finish(self, run: AgentRun, process: subprocess.Popen[bytes]) -> Seen:
        """Wait for its end and read it."""
        try:
            code = process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            kill(process)
            output = "".join((run.folder / name).read_text() for name in ("stdout.log", "stderr.log"))
            pytest.fail(f"the program has not ended within {WAIT_S:.0f} s; it wrote: {output[-2000:]}")
        reader = self.adapter.reader(run)
        lines = (run.folder / "stdout.log").read_bytes().splitlines()
        events = [event for line in lines for event in reader.feed(line)]
        for line in (run.folder / "stderr.log").read_bytes().splitlines():
            events += reader.feed_error(line)
        end = reader.end(Exit(code=code) if code >= 0 else Exit(signal=-code))
        self.session_id = end.session_id or self.session_id
        self.usage = added(self.usage, end.usage)
        return Seen(events, end)

    def run(self, prompt: str, *, resume: bool = False, decisions: Mapping[str, bool] | None = None) -> Seen:
        """Run it to its end."""
        return self.finish(*self.start(prompt, resume=resume, decisions=decisions))

    def ran(self) -> list[str]:
        """Return what the agent's commands have written into ran.txt, the proof that they ran."""
        file = self.cwd / "ran.txt"
        return file.read_text().split() if file.exists() else []


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill it and what it has started, with SIGKILL."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
