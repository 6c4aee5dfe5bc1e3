"""The real `claude` takes a task over MCP and completes it, with a model that is played by the fake provider."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sennit.integrations.mcp.shown import EXTERNAL, Errand
from sennit.model.lifecycle import State
from sennit.model.task import Ref, TaskSpec, encode
from sennit.store.protocol import Store
from sennit.testing.provider import FakeProvider
from sennit.testing.provider_tools import Said, ToolCall
from tests.agents.real_programs import ALONE, WAIT_S, program


def plays(request: dict[str, Any]) -> Said:
    """Claim, complete with what the claim says, and end: told by the answers of the tools so far."""
    results = [
        block
        for message in request["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
        if block.get("type") == "tool_result"
    ]
    offered = {tool["name"] for tool in request.get("tools", [])}
    if "mcp__sennit__task_claim" not in offered:  # it connects in the background, and has a tool to wait for that
        return [ToolCall("WaitForMcpServers")] if "WaitForMcpServers" in offered else "nothing to do"
    results = [block for block in results if "claim" in text_of(block["content"])]
    if not results:
        return [ToolCall("mcp__sennit__task_claim", {"wait_s": 20})]
    if len(results) > 1:
        return "It is done."
    claim = json.loads(text_of(results[0]["content"]))
    return [ToolCall("mcp__sennit__task_complete", {"claim": claim["claim"], "result": claim["instructions"].upper()})]


def text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


@pytest.mark.slow
def test_claude_claims_a_task_and_completes_it(store: Store, url: str, tmp_path: Path, environ: dict[str, str]) -> None:
    claude = program("claude", "SENNIT_TEST_CLAUDE")
    errand = Errand(title="shout", instructions="hello")
    spec = TaskSpec(ref=Ref(store.take_ids(1)[0]), handler=EXTERNAL, queue="external", payload=encode(errand))
    (task_id,) = store.submit([spec]).result()
    server = {"command": sys.executable, "args": ["-m", "sennit", "mcp", "--db", url]}
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"sennit": server}}))
    home = tmp_path / "home"
    home.mkdir()

    with FakeProvider(answer=plays) as provider:
        words = ["-p", "Take a task and do it.", "--mcp-config", str(config), "--strict-mcp-config"]
        words += ["--allowedTools", "mcp__sennit__task_claim,mcp__sennit__task_complete", "--output-format", "json"]
        done = subprocess.run(
            [claude, *words],
            cwd=home,
            env={
                "PATH": environ["PATH"],
                "HOME": str(home),
                **ALONE,
                "ANTHROPIC_API_KEY": "sk-ant-none",
                "ANTHROPIC_BASE_URL": provider.url,
            },
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=WAIT_S,
            check=False,
        )

    assert done.returncode == 0, done.stdout + done.stderr
    outcome = store.watch(task_id).result()
    assert (outcome.state, outcome.result) == (State.SUCCEEDED, b'"HELLO"')
