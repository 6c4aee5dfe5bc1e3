"""`sennit mcp` as clients start it: the official client, over real pipes, in both eras of the protocol."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters

from sennit.integrations.mcp.arguments import TOOLS
from sennit.model.lifecycle import State
from sennit.store.protocol import Store
from tests.mcp.conftest import Serve
from tests.mcp.cradle import Cradle
from tests.mcp.wire import PATIENCE_S, call, refused

APP = """
print("an app that prints while it is imported")
import os, sys
os.write(1, b"and to the descriptor\\n")
from sennit import App
app = App("sqlite:///fleet.db", durability="normal")

@app.task(name="triage", external=True, retries=1)
def triage(issue: int) -> str: ...
"""


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_the_whole_life_of_a_task(serve: Serve, store: Store, mode: str) -> None:
    server = serve()

    async def main() -> None:
        async with server.client(mode) as client:
            first = (await call(client, "task_create", title="plan", instructions="think", data={"n": 1}))["task"]
            second = (await call(client, "task_create", title="build", depends_on=[first], priority="high"))["task"]
            ready = await call(client, "task_ready")
            assert ready["ready"] == {"external": 1}
            assert [task["title"] for task in ready["tasks"]] == ["plan"]

            plan = await call(client, "task_claim")
            assert (plan["task"], plan["title"], plan["instructions"], plan["data"]) == (
                first,
                "plan",
                "think",
                {"n": 1},
            )
            token = plan["claim"]
            assert (await call(client, "task_heartbeat", claim=token))["lease_s"] == 300
            assert (await call(client, "task_note", claim=token, text="looked at it"))["note"] == 1
            done = await call(client, "task_complete", claim=token, result={"steps": ["a", "b"]})
            assert done["outcome"] == "succeeded"

            build = await call(client, "task_claim")
            assert build["dependencies"] == [{"task": first, "result": {"steps": ["a", "b"]}}]
            failed = await call(client, "task_fail", claim=build["claim"], error="no compiler", retry=False)
            assert failed["outcome"] == "failed"
            assert build["task"] == second

    asyncio.run(main())
    tasks = {task.id: task for task in store.tasks().result()}
    assert sorted(task.state for task in tasks.values()) == [State.FAILED, State.SUCCEEDED]
    assert store.verify().result() == []
    assert server.ended() == 0, server.stderr.read_text()


def test_stdout_is_the_protocols_alone_whatever_an_app_prints(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "fleet.py").write_text(APP)
    server = serve("fleet:app", "-v")

    async def main() -> None:
        async with server.client() as client:
            assert sorted(tool.name for tool in (await client.list_tools()).tools) == sorted(TOOLS)
            await refused(client, "task_claim", queue="other")

    asyncio.run(main())
    assert server.ended() == 0
    with os.fdopen(server.stdout, "rb", closefd=False) as rest:
        lines = server.said + rest.readlines()
    assert lines
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in lines)
    said = server.stderr.read_text()
    assert "an app that prints" in said
    assert "and to the descriptor" in said


def test_the_command_line_that_clients_are_given_works(tmp_path: Path, environ: dict[str, str]) -> None:
    """The SDK's own way to start a server: no fork of ours, nothing imported before."""
    words = ["-m", "sennit", "mcp", "--db", "sqlite:///fleet.db"]
    server = StdioServerParameters(command=sys.executable, args=words, cwd=tmp_path, env=environ)

    async def main() -> None:
        async with Client(server) as client:
            task = (await call(client, "task_create", title="one"))["task"]
            resource = await client.read_resource(f"task://{task}")
            (content,) = resource.contents
            assert json.loads(content.text)["state"] == "ready"  # type: ignore[union-attr]

    asyncio.run(main())
    assert (tmp_path / "fleet.db").exists()


def test_an_agent_takes_a_task_that_a_program_has_submitted_with_the_programs_policy(
    serve: Serve, tmp_path: Path, store: Store
) -> None:
    from sennit import App

    (tmp_path / "fleet.py").write_text(APP)
    server = serve("fleet:app")
    app = App(store.url, durability="normal")

    @app.task(name="triage", external=True, retries=1)
    def triage(issue: int) -> str:
        raise NotImplementedError  # it is for agents

    async def main() -> None:
        with closing(app):
            handle = triage.submit(7)
            async with server.client() as client:
                claim = await call(client, "task_claim")
                assert (claim["title"], claim["arguments"]) == ("triage", {"issue": 7})
                failed = await call(client, "task_fail", claim=claim["claim"], error="the page is gone")
                assert failed["outcome"] == "will be tried again", "retries=1 is what the handler says"
                again = await call(client, "task_claim", wait_s=50)
                assert (again["attempt"], again["failures"]) == (2, 1)
                await call(client, "task_complete", claim=again["claim"], result="a duplicate")
            async with asyncio.timeout(PATIENCE_S):
                assert await handle == "a duplicate"

    asyncio.run(main())


def test_a_client_that_closes_its_end_gives_back_what_it_holds(serve: Serve) -> None:
    leaving, staying = serve(), serve()

    async def main() -> None:
        async with staying.client() as other:
            async with leaving.client() as client:
                task = (await call(client, "task_create", title="one"))["task"]
                held = await call(client, "task_claim")
                waiting = asyncio.create_task(call(other, "task_claim", wait_s=50))
                await call(other, "task_ready")  # what comes after it in the pipe was read after it
                leaving.hang_up()
                again = await waiting
                assert (again["task"], again["attempt"], again["failures"]) == (task, 2, 0)
            assert leaving.ended() == 0
            error = await refused(other, "task_complete", claim=held["claim"])
            assert error["code"] == "S310"
            assert "attempt 2" in error["why"]

    asyncio.run(main())


def test_a_client_that_is_killed_gives_back_what_it_holds(
    serve: Serve, cradle: Cradle, store: Store, tmp_path: Path
) -> None:
    server, other_server = serve(), serve()
    said, its_stdout = os.pipe()
    descriptors = {1: its_stdout, 3: server.stdin, 4: server.stdout}
    process = cradle.start(
        "tests.mcp.programs:claims_and_stays", folder=tmp_path, environ=dict(os.environ), descriptors=descriptors
    )
    os.close(its_stdout)
    server.hang_up()  # our copy: now only the client has it

    async def main() -> None:
        async with other_server.client() as other:
            await call(other, "task_create", title="one")
            with os.fdopen(said) as lines:
                token = await asyncio.to_thread(lines.readline)
            assert token.strip()
            waiting = asyncio.create_task(call(other, "task_claim", wait_s=50))
            await call(other, "task_ready")
            assert process.kill() == -signal.SIGKILL
            again = await waiting
            assert (again["attempt"], again["failures"]) == (2, 0)
            assert (await refused(other, "task_complete", claim=token.strip()))["code"] == "S310"

    asyncio.run(main())
    (view,) = [task for task in store.tasks().result() if task.handler == "sennit.external"]
    assert (view.failures, view.crashes) == (0, 0)


def test_a_server_that_is_killed_loses_nothing_and_its_tokens_are_stale(serve: Serve, store: Store) -> None:
    killed, other_server = serve(), serve()

    async def main() -> None:
        async with other_server.client() as other, killed.client("legacy") as client:
            await call(client, "task_create", title="one")
            held = await call(client, "task_claim")
            waiting = asyncio.create_task(call(other, "task_claim", wait_s=50))
            await call(other, "task_ready")
            assert killed.process.kill() == -signal.SIGKILL
            again = await waiting
            assert again["attempt"] == 2
            assert (await refused(other, "task_complete", claim=held["claim"]))["code"] == "S310"
            await call(other, "task_complete", claim=again["claim"])

    asyncio.run(main())
    (view,) = [task for task in store.tasks().result() if task.handler == "sennit.external"]
    assert (view.state, view.failures, view.crashes) == (State.SUCCEEDED, 0, 1)
    assert store.verify().result() == []


def test_a_signal_gives_back_what_is_held(serve: Serve, store: Store) -> None:
    server = serve()

    async def main() -> None:
        async with server.client("legacy") as client:
            await call(client, "task_create", title="one")
            await call(client, "task_claim")
            os.kill(server.process.pid, signal.SIGTERM)
            assert await asyncio.to_thread(server.process.wait) == 128 + signal.SIGTERM

    asyncio.run(main())
    (view,) = [task for task in store.tasks().result() if task.handler == "sennit.external"]
    assert (view.state, view.attempt, view.crashes) == (State.READY, 1, 0)
