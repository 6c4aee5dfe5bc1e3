"""Tools that need a person: which calls, what the hook answers, what the run asks for. The real one: test_real_claude."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sennit.execute.adapters import claude_hook
from sennit.execute.adapters.base import Exit
from sennit.execute.adapters.claude import Claude
from sennit.execute.adapters.claude_hook import ASKED, NOT_HERE, REFUSED, REPEAT, decide, fingerprint
from sennit.model.agent import ToolAsk
from tests.agents.adapter_runs import agent_run, read
from tests.agents.claude_shapes import INIT, RESULT, call, deferred, result_of, said

# ---------------------------------------------------------------- which calls


@pytest.mark.parametrize(
    ("pattern", "tool", "given", "is_asked"),
    [
        ("Bash", "Bash", {"command": "ls"}, True),
        ("Bash", "Read", {"file_path": "a"}, False),
        ("*", "Anything", {}, True),
        ("mcp__db__*", "mcp__db__drop", {"table": "t"}, True),
        ("mcp__db__*", "mcp__other__drop", {"table": "t"}, False),
        ("Bash(git push*)", "Bash", {"command": "git push origin"}, True),
        ("Bash(git push*)", "Bash", {"command": "git status"}, False),
        ("Bash(git push*)", "Bash", {"command": "cd x && git push -f"}, True),
        ("Bash(git push*)", "Bash", {"command": "ls;git push"}, True),
        ("Bash(git push*)", "Bash", {"command": "echo $(git push)"}, True),
        ("Bash(git push*)", "Bash", {"command": "ls\ngit push"}, True),
        ("Bash(git push:*)", "Bash", {"command": "git push origin"}, True),
        ("Bash(git push:*)", "Bash", {"command": "git push"}, True),
        ("Bash(git push:*)", "Bash", {"command": "git pushed"}, False),
        ("Write(deploy/*)", "Write", {"file_path": "/srv/deploy/a.yml"}, True),
        ("Write(deploy/*)", "Write", {"file_path": "deploy/a.yml"}, True),
        ("Write(deploy/*)", "Write", {"file_path": "src/../deploy/a.yml"}, True),
        ("Write(deploy/*)", "Write", {"file_path": "/srv/src/a.py"}, False),
        ("Write(/etc/*)", "Write", {"file_path": "/etc/hosts"}, True),
        ("Write(deploy/*)", "Edit", {"file_path": "deploy/a.yml"}, False),
        ("WebFetch(https://example.com/*)", "WebFetch", {"url": "https://example.com/a"}, True),
        ('Other(*"prod"*)', "Other", {"where": "prod"}, True),
        ('Other(*"prod"*)', "Other", {"where": "test"}, False),
        ("Bash(git*)", "Bash", {"command": 7}, True),
        ("no pattern (", "Anything", {}, True),
    ],
)  # fmt: skip
def test_a_pattern_says_which_calls_need_a_person(
    *, pattern: str, tool: str, given: dict[str, Any], is_asked: bool
) -> None:
    assert claude_hook.needs_leave([pattern], tool, given, "/srv") is is_asked


# ---------------------------------------------------------------- what the hook answers


def asked(folder: Path, decisions: dict[str, bool], call_id: str = "toolu_1", **fields: Any) -> tuple[str, str]:
    """Return the decision and its reason for a use of Bash."""
    (folder / claude_hook.APPROVALS).write_text(json.dumps({"approve": ["Bash"], "decisions": decisions}))
    question = {"tool_name": "Bash", "tool_input": {"command": "make"}, "tool_use_id": call_id, "cwd": "/srv"}
    answer = decide(folder, question | fields) or {}
    return answer.get("permissionDecision", ""), answer.get("permissionDecisionReason", "")


SAME = fingerprint("Bash", {"command": "make"})


def test_a_call_that_nobody_has_decided_is_deferred_and_noted(tmp_path: Path) -> None:
    assert asked(tmp_path, {"toolu_0": True})[0] == "defer"
    assert json.loads((tmp_path / ASKED).read_text()) == {
        "id": "toolu_1", "tool": "Bash", "input": {"command": "make"}, "print": SAME,
    }  # fmt: skip


def test_a_call_that_needs_nobody_is_no_business_of_the_hook(tmp_path: Path) -> None:
    assert asked(tmp_path, {}, tool_name="Read") == ("", "")


def test_leave_and_refusal_hold_for_the_call(tmp_path: Path) -> None:
    assert asked(tmp_path, {"toolu_1": True})[0] == "allow"
    assert asked(tmp_path, {"toolu_1": False}) == ("deny", REFUSED)


def test_leave_for_what_is_done_holds_for_one_such_call(tmp_path: Path) -> None:
    leave = {f"toolu_0#{SAME}": True}

    assert asked(tmp_path, leave, "toolu_8")[0] == "allow"
    assert asked(tmp_path, leave, "toolu_9")[0] == "defer"
    assert asked(tmp_path, {f"toolu_5#{SAME}": False}, "toolu_9") == ("deny", REFUSED)
    assert asked(tmp_path, {"toolu_0#0123456789abcdef": True}, "toolu_9")[0] == "defer"


def test_a_call_whose_result_would_be_lost_is_to_be_made_again(tmp_path: Path) -> None:
    leave = {f"toolu_1#{SAME}": True}

    assert asked(tmp_path, leave, "toolu_1") == ("deny", REPEAT)
    assert asked(tmp_path, leave, "toolu_2")[0] == "allow"


def test_a_subagent_cannot_ask_but_may_use_leave(tmp_path: Path) -> None:
    assert asked(tmp_path, {}, agent_id="a-1") == ("deny", NOT_HERE)
    assert asked(tmp_path, {"toolu_1": True}, agent_id="a-1")[0] == "allow"


def test_the_same_call_has_the_same_fingerprint_in_any_order() -> None:
    assert fingerprint("Bash", {"a": 1, "b": "é"}) == fingerprint("Bash", {"b": "é", "a": 1})
    assert fingerprint("Bash", {"a": 1}) != fingerprint("Bash", {"a": 2}) != fingerprint("Write", {"a": 2})


@pytest.mark.parametrize(
    ("approvals", "question", "code", "answer"),
    [
        ('{"approve": ["Bash"], "decisions": {}}', '{"tool_name": "Bash", "tool_input": {}}', 0, '"defer"'),
        ('{"approve": ["Bash"], "decisions": {}}', "no JSON", 2, ""),
        ('{"approve": ["Bash"], "decisions": {}}', '{"tool_name": "Bash"}', 2, ""),
        ("{", '{"tool_name": "Bash", "tool_input": {}}', 2, ""),
    ],
)
def test_the_program_answers_and_refuses_when_it_fails(
    tmp_path: Path, approvals: str, question: str, code: int, answer: str
) -> None:
    (tmp_path / claude_hook.APPROVALS).write_text(approvals)
    argv = [sys.executable, "-I", "-S", claude_hook.__file__, str(tmp_path)]

    done = subprocess.run(argv, input=question, capture_output=True, text=True, check=False)

    assert done.returncode == code
    assert answer in done.stdout
    assert bool(done.stdout) is not bool(done.stderr)


# ---------------------------------------------------------------- what the run asks for


def test_a_deferred_call_is_asked_for_by_its_own_id(tmp_path: Path) -> None:
    events, end = read(
        Claude(approve=("Bash",)),
        agent_run(tmp_path),
        INIT,
        said(call("toolu_0", "Read", file_path="a")),
        result_of("toolu_0"),
        said(call("toolu_1", command="make")),
        deferred("toolu_1", command="make"),
    )

    ask = ToolAsk(call_id="toolu_1", tool="Bash", input={"command": "make"})
    assert (end.outcome, end.asks) == ("asks", (ask,))
    assert [(event.kind, event.call_id) for event in events[-2:]] == [("ask", "toolu_1"), ("result", "")]


def test_a_deferred_call_whose_result_would_be_lost_is_asked_for_by_what_it_does(tmp_path: Path) -> None:
    print_ = fingerprint("Bash", {"command": "make"})

    _, end = read(
        Claude(approve=("Bash",)),
        agent_run(tmp_path),
        said(call("toolu_1", command="make")),
        said(call("toolu_2", "Read", file_path="a")),
        result_of("toolu_2"),
        deferred("toolu_1", command="make"),
    )

    assert [ask.call_id for ask in end.asks] == [f"toolu_1#{print_}"]


def test_what_the_hook_deferred_before_in_the_same_turn_is_asked_for_too(tmp_path: Path) -> None:
    notes = [{"id": f"toolu_{at}", "tool": "Bash", "input": {"at": at}, "print": f"p{at}"} for at in (0, 1, 2)]
    (tmp_path / ASKED).write_text("\n".join([*map(json.dumps, notes), "torn {"]))

    _, end = read(
        Claude(approve=("Bash",)),
        agent_run(tmp_path),
        said(call("toolu_0"), message_id="msg_0"),  # of a turn before: it was answered
        said(call("toolu_1")),
        said(call("toolu_2")),
        deferred("toolu_2"),
    )

    assert [(ask.call_id, ask.input) for ask in end.asks] == [("toolu_1#p1", {"at": 1}), ("toolu_2", {})]


def test_a_deferral_that_names_no_call_is_no_question_and_no_success(tmp_path: Path) -> None:
    _, end = read(Claude(), agent_run(tmp_path), {**deferred("toolu_1"), "deferred_tool_use": None})

    assert (end.outcome, end.asks) == ("error", ())


def test_a_deferral_with_a_bad_exit_asks_nobody(tmp_path: Path) -> None:
    _, end = read(Claude(), agent_run(tmp_path), deferred("toolu_1"), exited=Exit(code=1))

    assert (end.outcome, end.asks) == ("error", ())


@pytest.mark.parametrize(
    ("first", "outcome"),
    [
        ([result_of("toolu_1"), INIT, said({"type": "text", "text": "Made."}), RESULT], "success"),
        ([deferred("toolu_1")], "asks"),
    ],
    ids=["it has leave", "it has none"],
)
def test_a_prompt_on_top_of_a_deferred_call_makes_two_results_of_which_the_last_one_ends_the_run(
    tmp_path: Path, first: list[dict[str, Any]], outcome: str
) -> None:
    run = agent_run(tmp_path, "You crashed. Go on.", is_resume=True)

    cut_events, cut = read(Claude(), run, *first, exited=Exit(signal=9))
    events, end = read(Claude(), run, *first, INIT, {**RESULT, "result": "All is done."})

    assert (cut.outcome, "result" in [event.kind for event in cut_events]) == ("error", False)
    assert (end.outcome, end.text) == (outcome, "All is done.")
    assert [event.text for event in events if event.kind == "result"] == ["All is done."]
    assert [ask.call_id for ask in end.asks] == (["toolu_1"] if outcome == "asks" else [])
    assert end.usage.input_tokens == 200


def test_a_resumed_run_without_a_deferred_call_ends_with_its_first_result(tmp_path: Path) -> None:
    run = agent_run(tmp_path, "You crashed. Go on.", is_resume=True)

    events, end = read(Claude(), run, INIT, said(call("toolu_1")), result_of("toolu_1"), RESULT)

    assert (events[-1].kind, end.outcome) == ("result", "success")


def test_a_resume_that_is_refused_ends_with_its_result(tmp_path: Path) -> None:
    run = agent_run(tmp_path, "You crashed. Go on.", is_resume=True)
    refused = {**RESULT, "subtype": "error_during_execution", "is_error": True, "errors": ["No conversation found"]}

    events, end = read(Claude(), run, {**refused, "result": None}, exited=Exit(code=1))

    assert (events[-1].kind, end.outcome) == ("result", "lost_session")
