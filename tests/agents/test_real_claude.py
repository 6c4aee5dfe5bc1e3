"""The real claude against a fake provider on loopback: what its adapter relies on, as it is. Seen with 2.1.197."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sennit.execute.adapters.claude import Claude
from sennit.execute.adapters.claude_hook import NOT_HERE, REFUSED, fingerprint
from sennit.sync.clock import wall_us
from sennit.testing.provider import FakeProvider
from sennit.testing.provider_tools import ToolCall
from tests.agents.real_programs import Desk, Model, kill, program

MakeDesk = Callable[..., Desk]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]  # a second of CPU for each run of the program


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[MakeDesk]:
    """Make an agent and its provider."""
    path = program("claude", "SENNIT_TEST_CLAUDE")
    with ExitStack() as providers:

        def make(model: Model | None = None, *, token: bool = False, **options: Any) -> Desk:
            provider = providers.enter_context(FakeProvider(answer=model or ""))
            adapter = Claude(program=path, config_folder=str(tmp_path / "config"), **options)
            login = {"CLAUDE_CODE_OAUTH_TOKEN": "any"} if token else {"ANTHROPIC_API_KEY": "any"}
            return Desk(tmp_path, adapter, provider, {"ANTHROPIC_BASE_URL": provider.url, **login})

        yield make


def bash(word: str, call_id: str) -> ToolCall:
    return ToolCall("Bash", {"command": f"echo {word} >> ran.txt"}, call_id)


def results(model: Model) -> dict[str, str]:
    """Return the results of tools that the model was told in its last call, by call."""
    return {
        block["tool_use_id"]: str(block["content"])
        for message in model.requests[-1]["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
        if block["type"] == "tool_result"
    }


# ---------------------------------------------------------------- runs


def test_a_run_is_read_to_its_result_and_another_process_goes_on_with_its_session(desk: MakeDesk) -> None:
    model = Model(["Let me see.", bash("first", "toolu_1")], "It is done.")
    agent = desk(model, tools_allowed=("Bash",), system_prompt="Speak of ships.", turns_max=5, budget_usd=50.0)

    first = agent.run("Count the ships. " + "x" * 200_000)  # longer than an argument may be
    second = agent.run("Go on.", resume=True)

    assert [kind for kind in first.kinds if kind != "usage"] == [
        "session", "text", "tool_begin", "tool_end", "text", "result",
    ]  # fmt: skip
    assert (first.end.outcome, first.end.text, first.end.turns) == ("success", "It is done.", 2)
    assert first.end.usage.input_tokens + second.end.usage.input_tokens == agent.provider.statistics().input_tokens
    assert first.end.usage.cost_usd is not None
    assert agent.ran() == ["first"]
    assert (second.end.outcome, second.end.session_id) == ("success", first.end.session_id)
    assert "Speak of ships." in str(model.requests[0]["system"])
    assert "Count the ships." in str(model.requests[-1]["messages"])


def test_kill_9_in_a_call_loses_nothing_of_the_session(desk: MakeDesk) -> None:
    model = Model("Never read.", "It is done.")
    agent = desk(model)
    agent.provider.inject("hang_before_headers")

    run, process = agent.start("Count the ships.")
    agent.provider.wait_for(in_service=1, timeout_s=90)
    kill(process)
    killed = agent.finish(run, process)
    resumed = agent.run("Your process was killed. Go on.", resume=True)

    assert (killed.end.outcome, killed.end.text) == ("error", "ended by SIGKILL without a result")
    assert killed.end.session_id == run.session_id == resumed.end.session_id
    assert (resumed.end.outcome, resumed.end.text) == ("success", "It is done.")
    assert "Count the ships." in str(model.requests[-1]["messages"])


def test_a_session_that_is_unknown_or_taken_is_told_from_other_failures(desk: MakeDesk) -> None:
    agent = desk(Model("It is done."))

    lost = agent.run("Go on.", resume=True)
    agent.run("Count the ships.")
    taken = agent.run("Count the ships.")

    assert lost.end.outcome == "lost_session"
    assert taken.end.outcome == "busy_session"


# ---------------------------------------------------------------- limits


def test_a_refused_call_is_tried_once_more_and_then_given_up(desk: MakeDesk) -> None:
    agent = desk()
    agent.provider.inject("status_429", 9)

    seen = agent.run("Count the ships.")

    assert agent.provider.statistics().requests == 2
    assert [(event.status, event.text) for event in seen.of("retry")] == [(429, "rate_limit")]
    assert (seen.end.outcome, seen.end.status) == ("limited", 429)
    assert seen.of("result")[0].is_error


def test_the_used_up_quota_of_a_subscription_says_when_it_is_back(desk: MakeDesk) -> None:
    agent = desk(token=True)
    agent.provider.exhaust(3600.0)
    now_s = wall_us() / 1e6

    seen = agent.run("Count the ships.")

    [limit] = seen.of("limit")
    assert (limit.is_error, limit.text) == (True, "five_hour rejected")
    assert seen.end.outcome == "limited"
    assert seen.end.resets_at_s == limit.resets_at_s
    assert limit.resets_at_s is not None
    assert now_s + 3590 < limit.resets_at_s < now_s + 3700
    assert agent.provider.statistics().requests == 1


# ---------------------------------------------------------------- people are asked


def test_a_tool_that_needs_a_person_waits_without_a_process_and_runs_once(desk: MakeDesk) -> None:
    model = Model([bash("asked", "toolu_1")], [bash("again", "toolu_2")], "It is done.")
    agent = desk(model, approve=("Bash",), tools_allowed=("Bash",))
    (agent.cwd / ".claude").mkdir()
    (agent.cwd / ".claude" / "settings.json").write_text('{"disableAllHooks": true}')

    asking = agent.run("Count the ships.")
    before = agent.ran()
    allowed = agent.run("", resume=True, decisions={"toolu_1": True})
    refused = agent.run("", resume=True, decisions={"toolu_1": True, "toolu_2": False})

    assert asking.end.outcome == "asks"
    assert [(ask.call_id, ask.tool, ask.input) for ask in asking.end.asks] == [
        ("toolu_1", "Bash", {"command": "echo asked >> ran.txt"})
    ]
    assert [event.call_id for event in asking.of("ask")] == ["toolu_1"]
    assert before == []
    assert [ask.call_id for ask in allowed.end.asks] == ["toolu_2"]
    assert (refused.end.outcome, refused.end.text) == ("success", "It is done.")
    assert agent.ran() == ["asked"]
    assert results(model)["toolu_2"] == REFUSED


def test_all_tools_that_were_deferred_in_one_turn_are_asked_for_at_once(desk: MakeDesk) -> None:
    read = ToolCall("Read", {"file_path": "a.txt"}, "toolu_3")
    model = Model(
        [bash("one", "toolu_1"), bash("two", "toolu_2"), read],
        [bash("one", "toolu_4"), bash("two", "toolu_5")],
        "It is done.",
    )
    agent = desk(model, approve=("Bash",), tools_allowed=("Bash", "Read"))
    (agent.cwd / "a.txt").write_text("A ship.")

    asking = agent.run("Count the ships.")
    leave = {ask.call_id: True for ask in asking.end.asks}
    done = agent.run("", resume=True, decisions=leave)

    assert sorted(leave) == [
        f"toolu_{at}#{fingerprint('Bash', {'command': f'echo {word} >> ran.txt'})}"
        for at, word in ((1, "one"), (2, "two"))
    ]
    assert done.end.outcome == "success"
    assert sorted(agent.ran()) == ["one", "two"]
    assert "toolu_5" in results(model)


def test_a_hook_that_fails_refuses_the_tool(desk: MakeDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model([bash("never", "toolu_1")], "It is done.")
    agent = desk(model, approve=("Bash",), tools_allowed=("Bash",))
    monkeypatch.setattr("sys.executable", "/nonexistent/python")

    seen = agent.run("Count the ships.")

    assert (seen.end.outcome, agent.ran()) == ("success", [])
    assert "hook error" in results(model)["toolu_1"]


def test_a_subagent_is_told_that_it_cannot_ask(desk: MakeDesk) -> None:
    helper = ToolCall("Agent", {"description": "d", "prompt": "Count.", "subagent_type": "general-purpose"}, "toolu_1")
    model = Model([helper], [bash("never", "toolu_2")], "I may not.", "It is done.")
    agent = desk(model, approve=("Bash",), tools_allowed=("Agent", "Bash"))

    seen = agent.run("Count the ships.")

    assert (seen.end.outcome, seen.end.text, agent.ran()) == ("success", "It is done.", [])
    assert any(NOT_HERE[:40] in str(request["messages"]) for request in model.requests)


def test_a_result_with_a_schema_is_data(desk: MakeDesk) -> None:
    model = Model([ToolCall("StructuredOutput", {"ships": 7})], "It is done.")
    schema = {"type": "object", "properties": {"ships": {"type": "integer"}}, "required": ["ships"]}

    seen = desk(model, schema=schema).run("Count the ships.")

    assert (seen.end.outcome, seen.end.structured) == ("success", {"ships": 7})
