"""`sennit agents` on a store with agents of every kind: what it lists and shows, what it ends and removes.

Lines and following: test_agents_tail.py.
"""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sennit.cli.agent_release import _release
from sennit.cli.agent_view import HEAD
from sennit.execute.worktrees import Worktree, Worktrees
from sennit.model.agent import AgentUsage, AgentView
from sennit.model.lifecycle import State
from sennit.store.sqlite import SqliteStore
from sennit.testing.contract_tools import got
from tests.cli.agents_fleet import Fleet, fleet_of, process_facts
from tests.unit.command_line import Run

WAITS = [sys.executable, "-I", "-S", "-c", "input()"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    store = SqliteStore(tmp_path / "fleet.db", durability="normal")
    with fleet_of(store, "sqlite:///fleet.db", tmp_path, monkeypatch) as fleet:
        yield fleet


@pytest.fixture
def program() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts programs that stay until they are ended."""
    with ExitStack() as stack:

        def start() -> subprocess.Popen[bytes]:
            process = stack.enter_context(subprocess.Popen(WAITS, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL))
            stack.callback(process.kill)
            return process

        yield start


# ---------------------------------------------------------------- ls, show


def test_without_agents_the_list_says_how_there_would_be_some(fleet: Fleet, run: Run) -> None:
    assert "app.agent" in run("agents")
    assert run.json("agents", "ls") == []


def test_the_list_has_those_at_work_and_with_all_also_those_that_have_ended(fleet: Fleet, run: Run) -> None:
    usage = AgentUsage(input_tokens=12_000, output_tokens=345, cost_usd=0.5)
    busy = fleet.begin(doing="Bash ls -la", tools=3, usage=usage)
    done = fleet.ended(agent="reviewer")

    head, line = run("agents").splitlines()
    assert re.split(r" {2,}", head.strip()) == list(HEAD)
    words = re.split(r" {2,}", line.strip())
    assert (words[:3], words[4:]) == ([str(busy.id), "writer", "working"], ["1", "3", "12k", "$0.50", "Bash ls -la"])
    assert [shown["task_id"] for shown in run.json("agents", "ls", "--all")] == [done.id, busy.id]
    assert [(shown["status"], shown["live"]) for shown in run.json("agents", "ls", "--all")] == [
        ("done", False),
        ("working", True),
    ]


def test_a_list_that_is_cut_tells_how_many_there_are_in_truth(fleet: Fleet, run: Run) -> None:
    for _ in range(3):
        fleet.begin()
    fleet.ended()

    assert len(run.json("agents", "ls", "--limit", "2")) == 2
    assert run.err == "2 of 3; more with --limit\n"
    assert len(run.json("agents", "ls", "--limit", "2", "--all")) == 2
    assert run.err == "2 of 4; more with --limit\n"
    run("agents", "ls", "--limit", "3")
    assert run.err == ""


def test_when_all_have_ended_the_list_says_how_many(fleet: Fleet, run: Run) -> None:
    fleet.ended()

    assert run("agents") == "no agent is at work; 1 has ended: --all\n"


def test_one_is_shown_with_its_process_session_folder_and_what_it_took(
    fleet: Fleet, run: Run, program: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = program()
    task = fleet.begin(stdout=b"x" * 2048, session_id="abc", model="opus", **process_facts(process.pid))

    text = run("agents", "show", str(task.id))
    (shown,) = run.json("agents", "show", str(task.id))

    assert f"{process.pid} on {socket.gethostname()}\n" in text
    assert "stdout 2.0 KiB, stderr 0 B" in text
    assert (shown["session_id"], shown["model"], shown["process"]) == ("abc", "opus", "runs")
    process.kill()
    process.wait()
    assert run.json("agents", "show", str(task.id))[0]["process"] == "gone"


def test_a_task_without_an_agent_and_an_unknown_one_are_told_apart(fleet: Fleet, run: Run) -> None:
    task_id = fleet.rig.put()

    run("agents", "show", str(task_id))
    assert run.code == 1
    assert f"task {task_id} has no agent" in run.err
    assert "its handler is work" in run.err
    run("agents", "tail", "999")
    assert "task 999" in run.err
    assert "has no agent" not in run.err


# ---------------------------------------------------------------- stop, kill


def test_stop_cancels_the_task_once(fleet: Fleet, run: Run) -> None:
    task = fleet.begin()

    assert run("agents", "stop", str(task.id), "--reason", "enough") == f"{task.id} cancelled\n"
    assert fleet.rig.state(task.id) is State.CANCELLED
    assert run("agents", "stop", str(task.id)) == f"{task.id} unchanged: it is cancelled\n"
    assert run.code == 4


def test_stop_of_a_task_without_an_agent_leaves_it_alone(fleet: Fleet, run: Run) -> None:
    task_id = fleet.rig.put()

    run("agents", "stop", str(task_id))

    assert run.code == 1
    assert fleet.rig.state(task_id) is State.READY


def test_kill_ends_the_process_and_not_the_task(
    fleet: Fleet, run: Run, program: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = program()
    task = fleet.begin(**process_facts(process.pid))

    (killed,) = run.json("agents", "kill", str(task.id))

    assert (killed["outcome"], killed["pid"], run.code) == ("killed", process.pid, 0)
    assert process.wait() == -9
    assert fleet.rig.state(task.id) is State.RUNNING
    assert "no process of it is there" in run("agents", "kill", str(task.id))
    assert run.code == 4


@pytest.mark.parametrize("other", ["started_ticks", "boot_id"])
def test_kill_spares_a_process_that_only_has_the_same_number(
    fleet: Fleet, run: Run, program: Callable[[], subprocess.Popen[bytes]], other: str
) -> None:
    process = program()
    facts = process_facts(process.pid)
    facts[other] = "another boot" if other == "boot_id" else facts[other] + 1
    task = fleet.begin(**facts)

    run("agents", "kill", str(task.id))

    assert run.code == 4
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait() == 0


def test_kill_refuses_on_another_host_and_says_what_works(
    fleet: Fleet, run: Run, program: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = program()
    task = fleet.begin(host="elsewhere", **process_facts(process.pid))

    run("agents", "kill", str(task.id))

    assert run.code == 1
    assert f"sennit agents stop {task.id}" in run.err
    assert process.poll() is None


# ---------------------------------------------------------------- release


@pytest.fixture
def worktree(tmp_path: Path) -> dict[str, str]:
    """What a view says of a worktree with a commit of its own."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *words], cwd=repository, check=True)
    worktrees = Worktrees(repository, tmp_path / "worktrees")

    async def work() -> Worktree:
        made = await worktrees.add("writer")
        (made.path / "new.txt").write_text("work")
        await worktrees.commit(made, "work")
        return made

    made = asyncio.run(work())
    return {"repository": str(repository), "worktree": str(made.path), "branch": made.branch}


def test_release_removes_a_kept_worktree_once_and_leaves_the_branch_with_its_commits(
    fleet: Fleet, run: Run, worktree: dict[str, str]
) -> None:
    task = fleet.ended(**worktree)

    said = run("agents", "release", str(task.id))

    assert (run.code, run.err) == (0, "")
    assert f"branch {worktree['branch']} has commits of its own and stays" in said
    assert not Path(worktree["worktree"]).exists()
    assert run.json("agents", "show", str(task.id))[0]["worktree"] == ""
    assert run("agents", "release", str(task.id)) == f"{task.id} unchanged: no worktree is kept for it\n"
    assert run.code == 4


def test_release_refuses_what_would_lose_work_unless_forced_and_then_tells_the_way_back(
    fleet: Fleet, run: Run, worktree: dict[str, str]
) -> None:
    task = fleet.ended(**worktree)
    (Path(worktree["worktree"]) / "only_here.txt").touch()

    run("agents", "release", str(task.id))
    assert (run.code, "only_here.txt" in run.err) == (1, True)
    assert Path(worktree["worktree"]).is_dir()
    said = run("agents", "release", str(task.id), "--force")

    assert run.code == 0
    assert not Path(worktree["worktree"]).exists()
    (command,) = re.findall(r"`git (branch .*?)`", said)
    assert subprocess.run(["git", *command.split()], cwd=worktree["repository"], check=False).returncode == 0


def test_a_worktree_that_was_removed_before_the_store_was_told_is_forgotten(
    fleet: Fleet, run: Run, worktree: dict[str, str]
) -> None:
    """As after a kill between the two."""
    task = fleet.ended(**worktree)
    assert asyncio.run(_release(Path(worktree["repository"]), Path(worktree["worktree"]), force=False)) is not None

    run("agents", "release", str(task.id))

    assert run.code == 0
    assert run.json("agents", "show", str(task.id))[0]["worktree"] == ""


def test_release_leaves_a_worktree_that_is_worked_in_or_elsewhere_or_none_of_ours(
    fleet: Fleet, run: Run, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", repository], check=True)
    strange = tmp_path / "strange"
    strange.mkdir()
    facts: dict[str, Any] = {"worktree": str(strange), "repository": str(repository)}
    to_be_retried = fleet.begin("failed", **facts)
    far = fleet.ended(host="elsewhere", **facts)
    ours = fleet.ended(**facts)

    for task, why in ((to_be_retried, "works in its worktree, or will"), (far, "elsewhere"), (ours, "has made of")):
        run("agents", "release", str(task.id), "--force")
        assert (run.code, why in run.err) == (1, True), run.err

    assert strange.is_dir()


# ---------------------------------------------------------------- clean


def test_clean_removes_what_ended_tasks_wrote_and_nothing_else(fleet: Fleet, run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("keep me")
    live, failed, done = fleet.begin(), fleet.begin("failed"), fleet.ended(stdout=b"x" * 1000)
    (fleet.folder(done.id) / "link").symlink_to(outside)
    pruned = fleet.folder(987_654)
    pruned.mkdir(parents=True)
    (pruned / "stdout.log").write_bytes(b"y" * 24)
    (fleet.root / "worktrees").mkdir()

    assert run("agents", "clean") == "0 folders removed, 0 B\n"
    (cleaned,) = run.json("agents", "clean", "--older-than", "0")

    assert (cleaned["folders"], cleaned["bytes"], cleaned["errors"], run.code) == (2, 1024, [], 0)
    assert sorted(path.name for path in fleet.root.iterdir()) == sorted([str(live.id), str(failed.id), "worktrees"])
    assert outside.read_text() == "keep me"
    assert run("agents", "clean", "--older-than", "0") == "0 folders removed, 0 B\n"


def test_clean_leaves_folders_of_other_hosts_and_such_as_are_no_runs(fleet: Fleet, run: Run, tmp_path: Path) -> None:
    far = fleet.ended(host="elsewhere")
    lying = fleet.begin()
    precious = tmp_path / "precious"
    precious.mkdir()
    view = AgentView(task_id=lying.id, agent="a", status="done", host=socket.gethostname(), folder=str(precious / "1"))
    assert got(fleet.store.note_agent(lying.claim, view))
    fleet.rig.succeed(lying)

    run("agents", "clean", "--older-than", "0")

    assert precious.is_dir()
    assert fleet.folder(far.id).is_dir()


@pytest.mark.parametrize("nonsense", ["-1", "soon", "1y", ""])
def test_an_age_that_is_none_is_an_error_of_the_command_line(fleet: Fleet, run: Run, nonsense: str) -> None:
    run("agents", "clean", "--older-than", nonsense)

    assert run.code == 2
