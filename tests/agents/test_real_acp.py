"""The real gemini as an ACP agent, against a server on loopback: what the adapter relies on, as it is. Seen with 0.61.0.

Found on PATH or by SENNIT_TEST_GEMINI; each of the two runs costs 4 CPU seconds.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sennit.execute.adapters.acp import Acp
from sennit.execute.adapters.base import AgentRun
from sennit.execute.agent_run import Finished, RunPlan, run_agent
from sennit.execute.supervisor import Supervisor
from sennit.model.agent import AgentEvent, Ceilings
from tests.agents.programs import on_a_loop, supervising
from tests.agents.real_programs import ALONE, program
from tests.agents.test_real_gemini import SETTINGS, Model


@pytest.fixture
def model() -> Iterator[Model]:
    with Model() as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        yield server
        server.shutdown()
        serving.join()


@pytest.fixture
def gemini(model: Model, tmp_path: Path) -> Acp:
    argv = (program("gemini", "SENNIT_TEST_GEMINI"), "--acp", "-m", "gemini-2.5-flash")
    home = tmp_path / "home" / ".gemini"
    home.mkdir(parents=True)
    (home / "settings.json").write_text(json.dumps(SETTINGS))
    url = f"http://127.0.0.1:{model.server_port}"
    folders = {"HOME": str(home.parent), "GEMINI_CLI_HOME": str(home.parent)}
    return Acp(argv, environ={**ALONE, **folders, "GEMINI_API_KEY": "any", "GOOGLE_GEMINI_BASE_URL": url})


def make_older(folder: Path, session_id: str) -> None:
    """Give the session's file an earlier minute: gemini 0.61.0 overwrites one that it loads in the minute of its beginning."""
    [file] = (folder / "home").rglob(f"session-*-{session_id[:8]}.jsonl")
    file.rename(file.with_name(f"session-2026-01-01T00-00-{session_id[:8]}.jsonl"))


@on_a_loop
async def test_gemini_waits_for_leave_without_a_process_and_then_writes_its_file_through_us(
    gemini: Acp, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()

    async def finished(supervisor: Supervisor, name: str, **fields: Any) -> tuple[Finished, list[AgentEvent]]:
        folder, events = tmp_path / name, list[AgentEvent]()
        folder.mkdir(mode=0o700)
        run = AgentRun(**{"prompt": "do it", "session_id": "", "is_resume": False, **fields}, cwd=work, folder=folder)
        plan = RunPlan(run=run, ceilings=Ceilings())
        return await run_agent(supervisor, gemini, plan, on_event=events.append), events

    async with supervising() as supervisor:
        waits, _ = await finished(supervisor, "1")
        was_written = (work / "new.txt").exists()
        make_older(tmp_path, waits.end.session_id)
        leave = {ask.call_id: True for ask in waits.end.asks}
        session = {"session_id": waits.end.session_id, "is_resume": True}
        done, events = await finished(supervisor, "2", prompt="", decisions=leave, **session)

    assert (waits.end.outcome, [ask.tool for ask in waits.end.asks]) == ("asks", ["Writing to new.txt"])
    assert not was_written
    assert (done.end.outcome, done.end.text, done.exit.code) == ("success", "All done.", 0)
    assert (work / "new.txt").read_text() == "hello"
    assert [event.kind for event in events] == ["session", "tool_begin", "tool_end", "text", "usage", "result"]
    assert (done.end.usage.input_tokens, done.end.usage.output_tokens) == (20, 10)
