"""Leave from people: an agent wants to use a tool, no process waits for the answer, and the tool is used once or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sennit import App
from sennit.agents import Claude
from sennit.model.lifecycle import State
from sennit.testing.fakeagent import FakeAgent, append, say
from sennit.threads.inbox import Question
from tests.runtime.provider_facts import on_a_loop


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with closing(App(f"sqlite:///{tmp_path}/fleet.db")) as made:
        yield made


@pytest.fixture
def fake(tmp_path: Path) -> FakeAgent:
    return FakeAgent(tmp_path / "fake").does(append(tmp_path / "out", "deployed"), say("as you wish"))


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def asked(app: App) -> Question:
    async with asyncio.timeout(30):
        while True:
            views = await app.inbox().list()
            if views:
                return views[0]
            await asyncio.sleep(0)


@pytest.mark.parametrize("said", [True, False], ids=["yes", "no"])
def test_a_tool_waits_for_leave_without_a_process(said: bool, app: App, fake: FakeAgent, tmp_path: Path) -> None:  # noqa: FBT001
    @on_a_loop
    async def go() -> None:
        worker = app.agent(
            "worker", Claude(program=fake.program, approve=("Bash",)), cwd=tmp_path, environ=fake.environ
        )
        async with app:
            handle = worker.submit("deploy")
            ask = await asked(app)
            view = await handle.view()
            (agent,) = await app.store.agents()
            assert (view.state, agent.status) == (State.SUSPENDED, "waiting")
            assert app.agent_statistics().running == {}
            assert lines(tmp_path / "out") == []
            assert "worker wants to use Bash" in ask.text
            inbox = app.inbox()
            await (inbox.approve(ask.id) if said else inbox.reject(ask.id))
            result = await handle
        assert (result.text, result.runs) == ("as you wish", 2)
        assert lines(tmp_path / "out") == (["deployed"] if said else [])
        assert fake.prompts() == ["deploy", None]  # the second run had leave, and no new prompt
        assert result.unknown == ()

    go()


@on_a_loop
async def test_nobody_is_asked_twice_after_a_restart(app: App, fake: FakeAgent, tmp_path: Path) -> None:
    worker = app.agent("worker", Claude(program=fake.program, approve=("Bash",)), cwd=tmp_path, environ=fake.environ)
    async with app:
        handle = worker.submit("deploy")
        ask = await asked(app)
    await app.inbox().approve(ask.id)  # while no worker is there
    async with app:
        assert (await app.handle(handle.id, worker)).text == "as you wish"
    assert lines(tmp_path / "out") == ["deployed"]
    assert len(fake.runs()) == 2
