"""The ACP adapter against agents made with the official package, each a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sennit.errors import SettingsError
from sennit.execute.adapters.acp import Acp
from sennit.execute.adapters.base import AgentRun
from sennit.execute.agent_run import Finished, RunPlan, run_agent
from sennit.execute.supervisor import Supervisor
from sennit.model.agent import AgentEvent, AgentUsage, Ceilings, RunEnd
from tests.agents.acp_agent import AgentNursery
from tests.agents.programs import on_a_loop, supervising

ACP = Acp(("agent",))
DELETE = ["ask", "c1", "execute", "Delete it", {"command": "rm x"}]


@pytest.fixture(scope="module")
def agents() -> Iterator[AgentNursery]:
    nursery = AgentNursery()
    yield nursery
    nursery.close()


@pytest.fixture
def run(tmp_path: Path) -> AgentRun:
    (tmp_path / "work").mkdir()
    (tmp_path / "run").mkdir()
    return AgentRun(prompt="do it", session_id="", is_resume=False, cwd=tmp_path / "work", folder=tmp_path / "run")


def again(run: AgentRun, end: RunEnd, decisions: dict[str, bool] | None = None, prompt: str = "") -> AgentRun:
    """Return the run that goes on with a session."""
    return msgspec.structs.replace(
        run, prompt=prompt, session_id=end.session_id, is_resume=True, decisions=decisions or {}
    )


def talk(
    agents: AgentNursery, run: AgentRun, *script: Any, adapter: Acp = ACP, **environ: str
) -> tuple[RunEnd, list[AgentEvent]]:
    return agents.talk(adapter, run, ACP_SCRIPT=json.dumps(script), **environ)


def session_of(run: AgentRun, end: RunEnd) -> list[str]:
    """Return what the agent itself wrote down: the folder it was given, then prompts and answers."""
    lines: list[str] = json.loads((run.folder / end.session_id).read_text())
    return lines


# ---------------------------------------------------------------- a turn


def test_a_turn_is_told_in_events_and_ends_with_the_last_message(agents: AgentNursery, run: AgentRun) -> None:
    end, events = talk(
        agents, run, ["think", "hm"], ["plan", "look", "mend"], ["say", "I look."],
        ["tool", "c1", "Read a.py", "read", {"path": "a.py"}, "completed"],
        ["tool", "c2", "Run", "execute", None, "failed"], ["say", "It is "], ["say", "mended."], ["stop", "end_turn"],
    )  # fmt: skip

    usage = AgentUsage(input_tokens=12, output_tokens=5, cached_input_tokens=2)
    assert end == RunEnd(outcome="success", text="It is mended.", session_id=end.session_id, turns=1, usage=usage)
    assert end.session_id
    assert session_of(run, end) == [str(run.cwd), "do it"]
    assert [(e.kind, e.text or e.tool or e.call_id, e.is_error) for e in events] == [
        ("session", "", False), ("thinking", "hm", False), ("thinking", "pending: look\npending: mend", False),
        ("text", "I look.", False), ("tool_begin", "Read a.py", False), ("tool_end", "c1", False),
        ("tool_begin", "Run", False), ("tool_end", "c2", True), ("text", "It is ", False), ("text", "mended.", False),
        ("usage", "", False), ("result", "It is mended.", False),
    ]  # fmt: skip
    assert [e.input for e in events if e.kind == "tool_begin"] == [{"path": "a.py"}, None]


@pytest.mark.parametrize("reason", ["max_tokens", "max_turn_requests", "refusal", "cancelled"])
def test_a_turn_that_stops_for_another_reason_is_no_success(agents: AgentNursery, run: AgentRun, reason: str) -> None:
    end, events = talk(agents, run, ["say", "so far"], ["stop", reason])

    assert (end.outcome, end.text) == ("error", f"it stopped: {reason}. so far")
    assert events[-1].is_error


def test_a_session_is_gone_on_with_and_its_history_is_no_news(agents: AgentNursery, run: AgentRun) -> None:
    first, _ = talk(agents, run, ["cost", 0.5], ["say", "one"])
    second, events = talk(agents, again(run, first, prompt="more"), ["say", "two"])

    assert (second.outcome, second.text, second.session_id) == ("success", "two", first.session_id)
    assert session_of(run, second) == [str(run.cwd), "do it", "more"]
    assert [e.text for e in events if e.kind == "text"] == ["two"]
    assert first.usage.cost_usd == 0.5
    assert second.usage.cost_usd is None


def test_what_a_session_cost_before_is_not_counted_again(agents: AgentNursery, run: AgentRun) -> None:
    first, _ = talk(agents, run, ["cost", 0.5])
    known = msgspec.structs.replace(again(run, first), usage=first.usage)

    assert talk(agents, known, ["cost", 0.75])[0].usage.cost_usd == 0.25
    assert talk(agents, again(run, first), ["cost", 0.75])[0].usage.cost_usd is None


def test_the_mode_is_set_before_the_prompt(agents: AgentNursery, run: AgentRun) -> None:
    end, _ = talk(agents, run, adapter=Acp(("agent",), mode="plan"))

    assert session_of(run, end)[1:] == ["mode plan", "do it"]


# ---------------------------------------------------------------- leave


def test_what_needs_leave_ends_the_turn_and_is_done_when_a_person_has_allowed_it(
    agents: AgentNursery, run: AgentRun
) -> None:
    waits, events = talk(agents, run, DELETE, ["say", "never said"])

    assert (waits.outcome, len(waits.asks)) == ("asks", 1)
    [ask] = waits.asks
    assert (ask.tool, ask.input) == ("Delete it", {"command": "rm x"})
    assert [e.call_id for e in events if e.kind == "ask"] == [ask.call_id]
    assert session_of(run, waits)[1:] == ["do it", "Delete it: cancelled"]

    other_id = ["ask", "c7", *DELETE[2:]]
    done, _ = talk(agents, again(run, waits, {ask.call_id: True}), other_id, ["say", " Gone."])

    assert (done.outcome, done.text) == ("success", "Delete it: once Gone.")
    *_, prompt, answer = session_of(run, done)
    assert "allowed 1 of your 1 request" in prompt
    assert answer == "Delete it: once"


def test_what_a_person_has_refused_is_refused(agents: AgentNursery, run: AgentRun) -> None:
    waits, _ = talk(agents, run, DELETE)

    done, _ = talk(agents, again(run, waits, {waits.asks[0].call_id: False}), DELETE)

    assert (done.outcome, done.text) == ("success", "Delete it: no")


def test_leave_is_for_what_was_seen_and_for_one_time(agents: AgentNursery, run: AgentRun) -> None:
    waits, _ = talk(agents, run, DELETE)
    leave = {waits.asks[0].call_id: True}
    worse = ["ask", "c1", "execute", "Delete it", {"command": "rm -rf /"}]

    other, _ = talk(agents, again(run, waits, leave), worse)
    twice, _ = talk(agents, again(run, waits, leave), DELETE, ["ask", "c2", *DELETE[2:]])

    assert (other.outcome, other.asks[0].input) == ("asks", {"command": "rm -rf /"})
    assert (twice.outcome, twice.asks[0].input) == ("asks", {"command": "rm x"})


def test_leave_that_an_earlier_run_had_is_not_had_again(agents: AgentNursery, run: AgentRun) -> None:
    waits, _ = talk(agents, run, DELETE)
    leave = {waits.asks[0].call_id: True}
    other, _ = talk(agents, again(run, waits, leave), DELETE, ["ask", "c2", "execute", "Push", {"command": "git push"}])
    leave |= {other.asks[0].call_id: True}  # all of them are handed in again

    third, _ = talk(agents, again(run, waits, leave), DELETE)

    assert (other.outcome, other.asks[0].tool) == ("asks", "Push")
    assert (third.outcome, third.asks[0].tool) == ("asks", "Delete it")


@pytest.mark.parametrize(("approve", "said"), [("allow", "once"), ("deny", "no")])
def test_leave_is_given_or_refused_without_a_person(
    agents: AgentNursery, run: AgentRun, approve: Any, said: str
) -> None:
    end, _ = talk(agents, run, DELETE, adapter=Acp(("agent",), approve=approve))

    assert (end.outcome, end.text) == ("success", f"Delete it: {said}")


# ---------------------------------------------------------------- files


def test_files_of_its_folder_are_read_and_written_and_no_others(agents: AgentNursery, run: AgentRun) -> None:
    work = run.cwd
    (work / "a.txt").write_text("one\ntwo\nthree\n")
    (work.parent / "secret").write_text("secret")
    (work / "link").symlink_to(work.parent / "secret")
    (work / "away").symlink_to(work.parent)

    end, _ = talk(
        agents, run, ["read", f"{work}/a.txt"], ["read", f"{work}/a.txt", 2, 1],
        ["write", f"{work}/new/b.txt", "written"], ["read", f"{work}/none"], ["read", f"{work}/link"],
        ["read", f"{work}/../secret"], ["write", f"{work}/away/secret", "no"], ["terminal", "sh"],
    )  # fmt: skip

    assert end.outcome == "success"
    said = end.text.removeprefix("[one\ntwo\nthree\n][two\n][done][").removesuffix("]").split("][")
    assert [words.split(" ")[0] for words in said] == ["-32002", "-32603", "-32603", "-32603", "-32601"]
    assert (work / "new" / "b.txt").read_text() == "written"
    assert (work.parent / "secret").read_text() == "secret"


def test_files_are_not_offered_when_they_are_not_to_be(agents: AgentNursery, run: AgentRun) -> None:
    (run.cwd / "a").write_text("a")
    acts = ["read", f"{run.cwd}/a"], ["write", f"{run.cwd}/b", "b"]

    nothing, _ = talk(agents, run, *acts, adapter=Acp(("agent",), files="none"))
    reads, _ = talk(agents, run, *acts, adapter=Acp(("agent",), files="read"))

    assert nothing.text == "[-32601 fs/read_text_file is not offered][-32601 fs/write_text_file is not offered]"
    assert reads.text == "[a][-32601 fs/write_text_file is not offered]"


# ---------------------------------------------------------------- what goes wrong


def test_a_session_that_the_agent_does_not_know_is_lost(agents: AgentNursery, run: AgentRun) -> None:
    unknown = msgspec.structs.replace(run, session_id="nobody", is_resume=True)

    assert talk(agents, unknown)[0].outcome == "lost_session"
    assert talk(agents, unknown, ACP_NO_LOAD="1")[0].outcome == "lost_session"


def test_an_agent_that_wants_a_login_is_unauthorised_and_is_logged_in_when_told_how(
    agents: AgentNursery, run: AgentRun
) -> None:
    without, _ = talk(agents, run, ACP_LOGIN="key")
    logged_in, _ = talk(agents, run, adapter=Acp(("agent",), auth_method="key"), ACP_LOGIN="key")

    assert (without.outcome, logged_in.outcome) == ("unauthorised", "success")
    assert "key" in without.text


def test_an_agent_of_another_protocol_version_is_told_apart(agents: AgentNursery, run: AgentRun) -> None:
    end, _ = talk(agents, run, ACP_VERSION="7")

    assert (end.outcome, end.turns) == ("error", 0)
    assert "version 7" in end.text


@pytest.mark.parametrize(
    ("act", "outcome"),
    [
        (["fail", -32603, "Too many requests, status 429, retry after 30 s"], "limited"),
        (["fail", -32000, "Authentication required"], "unauthorised"),
        (["fail", -32603, "out of luck"], "error"),
        (["die", 3], "error"),
        (["die", 0], "no_result"),
    ],
)
def test_a_turn_that_fails_says_how(agents: AgentNursery, run: AgentRun, act: Any, outcome: str) -> None:
    end, _ = talk(agents, run, act)

    assert end.outcome == outcome
    assert end.retry_after_s == (30.0 if outcome == "limited" else None)


def test_options_that_make_no_sense_are_refused(run: AgentRun) -> None:
    with pytest.raises(SettingsError, match="approve"):
        Acp(("agent",), approve="perhaps")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="argv"):
        Acp(())
    with pytest.raises(SettingsError, match="no id"):
        ACP.launch(msgspec.structs.replace(run, is_resume=True))
    assert ACP.launch(run).talks


# ---------------------------------------------------------------- supervised

# Without the package, which takes a second to import: asks for leave once, and is done when it has it.
BARE = """
import json, sys
def say(**message): print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
def update(**told): say(method="session/update", params={"sessionId": "s1", "update": told})
call = {"toolCallId": "c1", "kind": "execute", "title": "Push", "rawInput": {"command": "git push"}}
prompt_id = None
for line in sys.stdin:
    told = json.loads(line)
    match told.get("method"):
        case "initialize":
            say(id=told["id"], result={"protocolVersion": 1, "agentCapabilities": {"loadSession": True}})
        case "session/new" | "session/load":
            say(id=told["id"], result={"sessionId": "s1"})
        case "session/prompt":
            prompt_id = told["id"]
            update(sessionUpdate="tool_call", status="pending", **call)
            options = [{"optionId": "y", "kind": "allow_once"}, {"optionId": "n", "kind": "reject_once"}]
            say(id=9, method="session/request_permission", params={"sessionId": "s1", "toolCall": call, "options": options})
        case "session/cancel":
            pass
        case None:
            allowed = told["result"]["outcome"].get("optionId") == "y"
            if allowed:
                update(sessionUpdate="tool_call_update", toolCallId="c1", status="completed")
                update(sessionUpdate="agent_message_chunk", content={"type": "text", "text": "pushed"})
            say(id=prompt_id, result={"stopReason": "end_turn" if allowed else "cancelled"})
"""


@on_a_loop
async def test_a_supervised_agent_waits_for_leave_without_a_process_and_then_ends_by_itself(tmp_path: Path) -> None:
    adapter = Acp((sys.executable, "-I", "-S", "-c", BARE))
    events: list[AgentEvent] = []

    async def finished(supervisor: Supervisor, name: str, **fields: Any) -> Finished:
        folder = tmp_path / name
        folder.mkdir(mode=0o700)
        run = AgentRun(
            **{"prompt": "push it", "session_id": "", "is_resume": False, **fields}, cwd=tmp_path, folder=folder
        )
        plan = RunPlan(run=run, ceilings=Ceilings())
        return await run_agent(supervisor, adapter, plan, on_event=events.append)

    async with supervising() as supervisor:
        waits = await finished(supervisor, "1")
        live = supervisor.statistics().live
        leave = {waits.end.asks[0].call_id: True}
        session = {"session_id": waits.end.session_id, "is_resume": True}
        done = await finished(supervisor, "2", prompt="", decisions=leave, **session)

    assert (waits.end.outcome, waits.exit.code, live) == ("asks", 0, 0)
    assert (done.end.outcome, done.end.text, done.exit.code, done.exit.cause) == ("success", "pushed", 0, "")
    assert [event.kind for event in events if event.kind in {"ask", "tool_end", "result"}] == [
        "ask", "result", "tool_end", "result",
    ]  # fmt: skip
