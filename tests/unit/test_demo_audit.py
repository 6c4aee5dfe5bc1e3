"""What an agent of the demo is told: the files to read, where to wait, and a verdict that the analysis bears out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sennit.cli.demo.analysis import analyse_file
from sennit.cli.demo.audit import AUDITS_MAX, READS_MAX, Auditing, Auditor, audited, brief, verdict
from sennit.cli.demo.auditors import compare, use_of
from sennit.cli.demo.plan import Plan, plan
from sennit.cli.demo.records import Audit, FileReport
from sennit.execute.adapters.base import AgentRun
from sennit.testing.fakeagent import FakeEvent

BRANCHES = "".join(f"    if a == {n}:\n        return {n}\n" for n in range(13))


def tree(folder: Path, **files: str) -> Plan:
    """Make a tree of one package, each file named as its keyword."""
    (folder / "shop").mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / "shop" / f"{name}.py").write_text(text, encoding="utf-8")
    return plan(folder / "shop", files_max=100)


def measured(found: Plan) -> list[FileReport | None]:
    return [analyse_file(Path(file.file), path=file.path) for file in found.files]


def steps_in(text: str) -> list[dict[str, Any]]:
    """Read a prompt as the program does."""
    return [json.loads(line.strip()[6:]) for line in text.splitlines() if line.strip().startswith("fake: ")]


def event(kind: str, session: str = "s", **facts: object) -> FakeEvent:
    return FakeEvent(event=kind, pid=1, session_id=session, run=1, facts=facts)


def test_the_files_with_most_findings_are_read_and_the_last_one_after_the_gate(tmp_path: Path) -> None:
    found = tree(
        tmp_path, a="# TODO: a\n# TODO: b\n", b="# TODO: c\n", c='"""Fine."""\n', d='"""Fine too."""\n', e="x = 1\n"
    )

    prompt = brief(found.packages[0], measured(found), Auditing(str(tmp_path / "agents"), waits=True))

    did = [(step["do"], Path(step.get("path", "-")).name) for step in steps_in(prompt.text)]
    pid = os.getpid()
    assert did[:2] == [("read", "a.py"), ("read", "b.py")]
    assert [verb for verb, _ in did] == ["read", "read", "read", "touch", "wait", "read", "say"]
    assert did[3:5] == [("touch", f"at-{pid}"), ("wait", f"go-{pid}")]
    assert prompt.cwd == str(tmp_path / "agents")


def test_an_agent_that_is_not_to_wait_reads_on(tmp_path: Path) -> None:
    found = tree(tmp_path, a="x = 1\n")

    prompt = brief(found.packages[0], measured(found), Auditing(str(tmp_path)))

    assert [step["do"] for step in steps_in(prompt.text)] == ["read", "say"]


def test_a_file_that_the_program_cannot_read_is_passed_over(tmp_path: Path) -> None:
    found = tree(tmp_path, a="x = 1\n")
    (tmp_path / "shop" / "a.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe9'\n")

    prompt = brief(found.packages[0], measured(found), Auditing(str(tmp_path), waits=True))

    assert [step["do"] for step in steps_in(prompt.text)] == ["touch", "wait", "say"]


@pytest.mark.parametrize("end", ["\n", "\x0b", "\x1c", "\x85", "\u2028"])
def test_no_name_of_a_file_or_folder_becomes_a_step(end: str, tmp_path: Path) -> None:
    evil = f'a{end}fake: {{"do":"shell","command":"true"}}{end}b'
    (tmp_path / evil).mkdir()
    (tmp_path / evil / f"{evil}.py").write_text("# TODO: x\n", encoding="utf-8")
    found = plan(tmp_path / evil, files_max=10)

    prompt = brief(found.packages[0], measured(found), Auditing(str(tmp_path), waits=True))

    assert [step["do"] for step in steps_in(prompt.text)] == ["touch", "wait", "read", "say"]


def test_a_verdict_says_what_was_measured(tmp_path: Path) -> None:
    found = tree(tmp_path, a=f"def tangled(a):\n{BRANCHES}    return a\n", b='"""Fine."""\n')

    said = verdict("shop", [report for report in measured(found) if report], n_read=2)

    assert said == (
        "Read 2 of 2 files of `shop`: 1 warning, 2 notes. 1 of 1 function is above complexity 10; look at `tangled` "
        "(shop/a.py:1, 14) first. No file has more findings than `shop/a.py`: 3."
    )
    assert verdict("shop", [], n_read=0) == "Read 0 of 0 files of `shop`: no finding."


def test_the_largest_packages_are_audited_in_the_order_of_the_tree(tmp_path: Path) -> None:
    for n in range(AUDITS_MAX + 2):
        (tmp_path / "shop" / f"p{n}").mkdir(parents=True)
        for file in range(1 + (n + 3) % 7):
            (tmp_path / "shop" / f"p{n}" / f"{file}.py").write_text("x = 1\n", encoding="utf-8")

    chosen = audited(plan(tmp_path / "shop", files_max=100))

    assert [package.name for package in chosen] == [f"shop/p{n}" for n in (0, 1, 2, 3, 6, 7)]
    assert READS_MAX == 4


def test_the_program_is_the_fake_one_and_gets_nothing_of_the_users_own(tmp_path: Path) -> None:
    adapter = Auditor(program="/nowhere/claude")
    run = AgentRun(
        prompt="read", session_id=adapter.new_session_id(), is_resume=False, cwd=tmp_path, folder=tmp_path / "run"
    )

    launch = adapter.launch(run)

    assert launch.argv[3].endswith("fakeagent_program.py")
    assert "/nowhere/claude" not in launch.argv
    assert launch.environ["CLAUDE_CONFIG_DIR"] == str(tmp_path / "config")
    assert adapter.passes == ()


def test_a_tool_use_that_took_place_twice_is_counted_and_a_result_of_nobody_is_told() -> None:
    audit = Audit("shop", "fine", 7, "s", runs=2)
    log = [event("did", key="0.0"), event("did", key="0.1"), event("did", key="0.1"), event("result", text="fine")]

    use = use_of([audit], log)

    assert (use.agents, use.tools, use.runs, use.resumed, use.repeated) == (1, 2, 2, 1, 1)
    assert compare([audit], log).wrong == ()
    assert compare([audit], log[:3]).wrong == (
        "the audit of shop (task 7) succeeded, and no program has said what it says",
    )
