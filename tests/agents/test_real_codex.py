"""The real codex against a fake provider on loopback: what its adapter relies on, as it is. Seen with 0.169.0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sennit.execute.adapters.codex import OWN_PROVIDER, Codex
from sennit.sync.clock import wall_us
from sennit.testing.provider import FakeProvider
from sennit.testing.provider_tools import ToolCall
from tests.agents.real_programs import Desk, Model, kill, program

MakeDesk = Callable[..., Desk]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[MakeDesk]:
    """Make an agent and its provider."""
    path = program("codex", "SENNIT_TEST_CODEX")
    home = tmp_path / "home"
    home.mkdir()
    with ExitStack() as providers:

        def make(model: Model | None = None, *, login: bool = False, **options: Any) -> Desk:
            provider = providers.enter_context(FakeProvider(answer=model or "", api_key="any"))
            url = f"{provider.url}/v1"
            if login:
                options["config"] = {f"model_providers.{OWN_PROVIDER}.base_url": url}
            else:
                options |= {"base_url": url, "key": "A_KEY"}
            adapter = Codex(program=path, home=str(home), model="fake-model", **options)
            return Desk(tmp_path, adapter, provider, {"CODEX_API_KEY" if login else "A_KEY": "any"})

        yield make


def run_command(word: str) -> ToolCall:
    return ToolCall("exec_command", {"cmd": f"echo {word} >> ran.txt"})


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return [
        part["text"] for message in messages if isinstance(message.get("content"), list) for part in message["content"]
    ]


def test_a_run_is_read_to_its_result_and_another_process_goes_on_with_its_session(desk: MakeDesk) -> None:
    model = Model(["Let me see.", run_command("first")], "It is done.")
    agent = desk(model, sandbox="danger-full-access", system_prompt='Speak of "ships".\n')

    first = agent.run("Count the ships. " + "x" * 200_000)  # longer than an argument may be
    second = agent.run("Go on.", resume=True)

    assert [kind for kind in first.kinds if kind != "error"] == [  # it warns that it does not know the model
        "session", "text", "tool_begin", "tool_end", "text", "usage", "result",
    ]  # fmt: skip
    assert first.kinds[0] == "session"
    assert first.of("session")[0].session_id == first.end.session_id == second.end.session_id != ""
    assert (first.end.outcome, first.end.text, first.end.turns) == ("success", "It is done.", 1)
    assert (second.end.outcome, second.end.text) == ("success", "It is done.")
    assert first.end.usage.input_tokens + second.end.usage.input_tokens == agent.provider.statistics().input_tokens
    assert agent.ran() == ["first"]
    assert any('Speak of "ships".' in text for text in texts(model.requests[0]["input"]))
    assert any(text.startswith("Count the ships.") for text in texts(model.requests[-1]["input"]))


def test_kill_9_in_a_call_loses_nothing_of_the_session(desk: MakeDesk) -> None:
    model = Model("Never read.", "It is done.")
    agent = desk(model)
    agent.provider.inject("hang_before_headers")

    run, process = agent.start("Count the ships.")
    agent.provider.wait_for(in_service=1, timeout_s=90)
    kill(process)
    killed = agent.finish(run, process)
    resumed = agent.run("Your process was killed. Go on.", resume=True)

    assert killed.end.outcome == "error"
    assert killed.end.text.startswith("ended by SIGKILL without a result")
    assert killed.end.session_id == resumed.end.session_id != ""
    assert (resumed.end.outcome, resumed.end.text) == ("success", "It is done.")
    assert "Count the ships." in texts(model.requests[-1]["input"])


def test_a_session_that_is_unknown_is_told_from_other_failures(desk: MakeDesk) -> None:
    agent = desk()
    agent.session_id = "a43c38c1-0fff-4c54-8511-8aba5ab700d9"

    assert agent.run("Go on.", resume=True).end.outcome == "lost_session"


def test_a_refused_call_is_given_up_at_once_whatever_wait_is_asked_for(desk: MakeDesk) -> None:
    agent = desk()
    agent.provider.exhaust(3600.0)  # with Retry-After: 3600

    seen = agent.run("Count the ships.")

    assert agent.provider.statistics().requests == 1
    assert (seen.end.outcome, seen.end.status) == ("limited", 429)
    assert seen.of("result")[0].is_error


def test_a_used_up_quota_says_when_it_is_back(desk: MakeDesk) -> None:
    agent = desk()
    agent.provider.configure(window_style="usage_limit")
    agent.provider.exhaust(3600.0)
    now_s = wall_us() / 1e6

    seen = agent.run("Count the ships.")

    assert seen.end.outcome == "limited"
    assert seen.end.resets_at_s is not None
    assert now_s + 3590 < seen.end.resets_at_s < now_s + 3780  # told to the minute


def test_a_wrong_key_is_told_from_other_failures(desk: MakeDesk) -> None:
    agent = desk()
    agent.provider.configure(api_key="another")

    seen = agent.run("Count the ships.")

    assert (seen.end.outcome, seen.end.status) == ("unauthorised", 401)


def test_the_provider_of_our_own_uses_the_login_of_the_program(desk: MakeDesk) -> None:
    schema = {"type": "object", "properties": {"ships": {"type": "integer"}}, "required": ["ships"]}
    agent = desk(Model('{"ships": 7}'), login=True, schema=schema)

    seen = agent.run("Count the ships.")

    assert (seen.end.outcome, seen.end.structured) == ("success", {"ships": 7})
    assert agent.provider.statistics().requests == 1
