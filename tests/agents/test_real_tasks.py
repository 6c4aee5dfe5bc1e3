"""The real claude and codex as tasks: app, supervisor and adapter as they are, and a fake provider on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sennit import App
from sennit.model.lifecycle import State
from sennit.testing.provider import FakeProvider
from sennit.testing.provider_tools import ToolCall
from tests.agents.facts import alive, until
from tests.agents.real_program import fleet
from tests.agents.real_programs import Model, program
from tests.crash.nursery import Nursery

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # a second of CPU for each run of a program

KINDS = ("claude", "codex")
PATIENCE_S = 200.0


class Office:
    """One kind of agent in a folder, and who answers it."""

    def __init__(self, folder: Path, kind: str, providers: ExitStack) -> None:
        self.folder = folder
        self.kind = kind
        self.program = program(kind, f"SENNIT_TEST_{kind.upper()}")
        self._providers = providers

    def answered_by(self, model: Model | str) -> FakeProvider:
        self.provider = self._providers.enter_context(FakeProvider(answer=model, api_key="any"))
        return self.provider

    def app(self, **options: Any) -> App:
        return fleet(self.folder, self.kind, self.program, self.provider.url, **options)

    def run_command(self, word: str) -> ToolCall:
        """Return what the model says so that a command writes a word into ran.txt."""
        if self.kind == "claude":
            return ToolCall("Bash", {"command": f"echo {word} >> ran.txt"}, f"toolu_{word}")
        return ToolCall("exec_command", {"cmd": f"echo {word} >> ran.txt"})

    def ran(self) -> list[str]:
        file = self.folder / "work" / "ran.txt"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def make_office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Office]]:
    with ExitStack() as providers:

        def make(kind: str) -> Office:
            made = Office(tmp_path, kind, providers)
            for variable in ("SENNIT_TEST_CLAUDE", "SENNIT_TEST_CODEX", "SENNIT_TEST_GEMINI"):
                monkeypatch.delenv(variable, raising=False)  # an app takes SENNIT_* for its settings
            return made

        yield make


@pytest.fixture(params=KINDS)
def office(request: pytest.FixtureRequest, make_office: Callable[[str], Office]) -> Office:
    return make_office(request.param)


def told(model: Model) -> str:
    """Return the last that the model was sent, as text."""
    return str(model.requests[-1].get("messages") or model.requests[-1].get("input"))


FREE: dict[str, dict[str, Any]] = {"claude": {"tools_allowed": ("Bash",)}, "codex": {"sandbox": "danger-full-access"}}


def test_a_real_agent_uses_a_tool_and_gives_its_last_word(office: Office) -> None:
    office.answered_by(Model(["Let me see.", office.run_command("first")], "It is done."))

    async def go() -> None:
        app = office.app(**FREE[office.kind])
        async with asyncio.timeout(PATIENCE_S), app:
            result = await app.submit_named("worker", {"prompt": "Count the ships."})
        (view,) = await app.store.agents()
        app.close()
        assert (result.text, result.runs, result.tools, result.unknown) == ("It is done.", 1, 1, ())
        assert result.usage.input_tokens == office.provider.statistics().input_tokens
        assert (view.status, view.session_id, view.tools) == ("done", result.session_id, 1)
        assert office.ran() == ["first"]
        assert not alive(view.pid)

    asyncio.run(go())


def test_kill_9_of_the_worker_in_mid_call_goes_on_in_the_same_session(office: Office, nursery: Nursery) -> None:
    model = Model("Never read.", "It is done.")
    office.answered_by(model)
    office.provider.inject("hang_before_headers")

    async def go() -> None:
        app = office.app()
        async with asyncio.timeout(PATIENCE_S):
            handle = await app.submit_named("worker", {"prompt": "Count the ships."}).stored()
            worker = nursery.start(
                "tests.agents.real_program:serve", str(office.folder), office.kind, office.program, office.provider.url
            )
            await asyncio.to_thread(office.provider.wait_for, in_service=1, timeout_s=90)
            while not (views := await app.store.agents()) or not views[0].session_id or not views[0].pid:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # sleep: until the worker has noted what the program said
            (before,) = views
            worker.kill()
            await until(lambda: not alive(before.pid))
            async with app:
                result = await handle
        ledger = await app.ledger()
        app.close()
        assert (result.text, result.runs, result.session_id) == ("It is done.", 2, before.session_id)
        assert "Count the ships." in told(model)
        assert "You were interrupted" in told(model)
        assert (ledger.submitted, ledger.succeeded, ledger.crashed) == (1, 1, 1)

    asyncio.run(go())


def test_a_refused_call_costs_no_attempt(office: Office) -> None:
    model = Model("It is done.")
    office.answered_by(model)
    office.provider.inject("status_429", {"claude": 2, "codex": 1}[office.kind])  # claude tries once more by itself

    async def go() -> None:
        app = office.app(provider=True)
        async with asyncio.timeout(PATIENCE_S), app:
            handle = app.submit_named("worker", {"prompt": "Count the ships."})
            result = await handle
            task = await handle.view()
            (provider,) = await app.store.providers(("model",))
        app.close()
        assert (result.text, result.runs) == ("It is done.", 2)
        assert (task.failures, task.crashes) == (0, 0)
        assert provider.throttled > 0
        assert "Count the ships." in told(model)

    asyncio.run(go())


def test_a_used_up_quota_pauses_the_provider_and_gives_the_attempt_back(office: Office) -> None:
    office.answered_by(Model("Never read."))
    office.provider.configure(window_style="usage_limit")
    office.provider.exhaust(3600.0)

    async def go() -> None:
        app = office.app(provider=True, **({"token": True} if office.kind == "claude" else {}))
        async with asyncio.timeout(PATIENCE_S), app:
            handle = app.submit_named("worker", {"prompt": "Count the ships."})
            (provider,) = await app.store.providers(("model",))
            while (task := await handle.view()).state is not State.READY or provider.reason != "pause":
                await asyncio.sleep(0.01)  # sleep: until the program has come so far
                (provider,) = await app.store.providers(("model",))
            (agent,) = await app.store.agents()
            assert (provider.reason, provider.pause) == ("pause", "window")
            assert (task.failures, task.crashes) == (0, 0)
            assert (agent.status, alive(agent.pid)) == ("waiting", [])
            assert app.agent_statistics().running == {}
        app.close()

    asyncio.run(go())


def test_claude_waits_for_leave_without_a_process_and_uses_the_tool_once(make_office: Callable[[str], Office]) -> None:
    office = make_office("claude")
    office.answered_by(Model([office.run_command("asked")], "It is done."))

    async def go() -> None:
        app = office.app(approve=("Bash",), tools_allowed=("Bash",))
        async with asyncio.timeout(PATIENCE_S), app:
            handle = app.submit_named("worker", {"prompt": "Count the ships."})
            while not (questions := await app.inbox().list()):  # noqa: ASYNC110 - nothing else tells of a question
                await asyncio.sleep(0.01)  # sleep: until the program has come so far
            (agent,) = await app.store.agents()
            assert ((await handle.view()).state, agent.status) == (State.SUSPENDED, "waiting")
            assert not alive(agent.pid)
            assert office.ran() == []
            await app.inbox().approve(questions[0].id)
            result = await handle
        app.close()
        assert (result.text, result.runs, result.unknown) == ("It is done.", 2, ())
        assert office.ran() == ["asked"]

    asyncio.run(go())
