"""kill -9 of whoever is above an agent: nothing of it lives on, and nobody else is touched."""

from __future__ import annotations

import asyncio
import os
import pty
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sennit.execute.agent_leftover import ProcessRecord, clean_up, pid_namespace, read_record
from sennit.execute.agent_proc import descendants, everybody, stat_of
from sennit.sync.clock import boot_id
from tests.agents.programs import Runs, has_ended, marked, on_a_loop, parent_of, supervising
from tests.agents.supervising_program import AGENT, AGENTS, LINES, WIPE
from tests.crash.nursery import Nursery

DEAD_PID = 2**22 - 1  # above what is in use: nobody's


def rest_of(runs: Runs) -> list[int]:
    """Return the pids that were said and not read yet."""
    os.set_blocking(runs._fifo, False)
    try:
        return [int(word) for word in os.read(runs._fifo, 65536).split() if word]
    except BlockingIOError:
        return []
    finally:
        os.set_blocking(runs._fifo, True)


# ---------------------------------------------------------------- the supervisor is killed


@pytest.mark.parametrize("seed", range(4))
def test_kill_9_of_the_supervisor_at_any_point_leaves_no_descendant(
    runs: Runs, nursery: Nursery, tmp_path: Path, seed: int
) -> None:
    """The point: after a random number of lines of its agents, of whom some are just being started."""
    supervising_one = nursery.start("tests.agents.supervising_program:run", str(tmp_path))
    pids = [int(pid) for pid in runs.said(random.Random(seed).randrange(LINES + 1))]

    os.kill(supervising_one.pid, signal.SIGSTOP)  # at this point; who is below it by now?
    below = [stat.pid for stat in descendants(supervising_one.pid, everybody())]

    assert supervising_one.kill() == -signal.SIGKILL

    # The warden is the last to end: after its keepers, and these after their trees.
    assert all(has_ended(pid) for pid in below)
    folders = runs.folders()
    assert marked(folders) == []
    pids += rest_of(runs)
    assert [pid for pid in pids if stat_of(pid) is not None and not has_ended(pid)] == []
    assert [clean_up(folder) for folder in folders] == [None] * len(folders)


def test_when_all_above_are_killed_at_once_the_next_supervisor_cleans_up(
    runs: Runs, nursery: Nursery, tmp_path: Path
) -> None:
    supervising_one = nursery.start("tests.agents.supervising_program:run", str(tmp_path), "")
    pids = [int(pid) for pid in runs.said(LINES)]
    folders = sorted(tmp_path.glob("run*"))
    records = [record for folder in folders if (record := read_record(folder))]
    keepers = [record.keeper_pid for record in records]
    warden = parent_of(keepers[0])
    assert clean_up(folders[0]) is None, "its supervisor lives"
    for pid in (warden, *keepers):
        os.kill(pid, signal.SIGSTOP)

    supervising_one.kill()
    for pid in (warden, *keepers):
        os.kill(pid, signal.SIGKILL)
    assert all(has_ended(pid) for pid in (warden, *keepers))
    assert len(records) == AGENTS
    assert len(marked(folders)) >= 3 * AGENTS

    left = [clean_up(folder) for folder in folders]

    assert all(one is not None and one.killed >= 3 for one in left)
    assert marked(folders) == []
    assert all(has_ended(pid) for pid in pids)
    assert [clean_up(folder) for folder in folders] == [None] * AGENTS


def test_a_frozen_keeper_is_ended_by_the_next_supervisor(runs: Runs, nursery: Nursery, tmp_path: Path) -> None:
    supervising_one = nursery.start("tests.agents.supervising_program:run", str(tmp_path))
    pids = [int(pid) for pid in runs.said(LINES)]
    folder = min(tmp_path.glob("run*"))
    record = read_record(folder)
    assert record is not None
    os.kill(record.keeper_pid, signal.SIGSTOP)
    supervising_one.kill()

    left = clean_up(folder)

    assert left is not None
    assert left.killed >= 4
    assert marked([folder]) == []
    assert has_ended(record.keeper_pid)
    assert all(has_ended(pid) for pid in pids)


# ---------------------------------------------------------------- the warden, a keeper


@on_a_loop
async def test_kill_9_of_a_keeper_ends_its_agent_and_no_other(runs: Runs) -> None:
    async with supervising() as supervisor:
        lost, other = [await supervisor.spawn(runs.shell(WIPE + AGENT)) for _ in range(2)]
        pids = [int(pid) for pid in runs.said(8)]

        os.kill(lost.keeper_pid, signal.SIGKILL)
        ended = await lost.exited

        assert (ended.code, ended.signal, ended.cause) == (None, signal.SIGKILL, "lost")
        assert marked([lost.folder]) == []
        live = [pid for pid in pids if stat_of(pid) is not None]
        assert len(live) == 4
        assert other.pid in live
        assert not other.exited.done()


@on_a_loop
async def test_kill_9_of_the_keeper_that_waits_for_the_next_agent_delays_nobody(runs: Runs) -> None:
    async with supervising() as supervisor:
        for _ in range(3):
            running = await supervisor.spawn(runs.shell("sleep 1000"))
            warden = supervisor.statistics().warden_pid
            for stat in everybody():
                if stat.parent == warden and stat.pid != running.keeper_pid:
                    os.kill(stat.pid, signal.SIGKILL)
                    assert has_ended(stat.pid)

            process = await supervisor.spawn(runs.shell("exit 3"))

            assert (await process.exited).code == 3
            assert not running.exited.done()
            running.kill("stopped")
            await running.exited


@on_a_loop
async def test_kill_9_of_the_warden_ends_its_agents_and_the_next_spawn_has_another(runs: Runs) -> None:
    async with supervising() as supervisor:
        agents = [await supervisor.spawn(runs.shell(WIPE + AGENT)) for _ in range(2)]
        pids = [int(pid) for pid in runs.said(8)]

        os.kill(supervisor.statistics().warden_pid, signal.SIGKILL)
        ends = [await agent.exited for agent in agents]

        assert [(ended.signal, ended.cause) for ended in ends] == [(signal.SIGKILL, "lost")] * 2
        assert [pid for pid in pids if stat_of(pid) is not None] == []
        again = await supervisor.spawn(runs.spec("true"))
        assert (await again.exited).code == 0
        assert supervisor.statistics().warden_restarts == 1


@on_a_loop
async def test_kill_9_of_warden_and_keepers_at_once_is_cleaned_up_by_the_supervisor(runs: Runs) -> None:
    async with supervising() as supervisor:
        agents = [await supervisor.spawn(runs.shell("setsid sleep 1000 & echo up >$SAID; wait")) for _ in range(3)]
        runs.said(3)
        above = [supervisor.statistics().warden_pid, *(agent.keeper_pid for agent in agents)]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in above:
                os.kill(pid, number)

        ends = await asyncio.gather(*(agent.exited for agent in agents))

        assert {ended.cause for ended in ends} == {"lost"}
        assert marked(agent.folder for agent in agents) == []


# ---------------------------------------------------------------- ctrl-C


def test_a_ctrl_c_is_the_supervisors_to_handle_and_reaches_no_agent(
    runs: Runs, nursery: Nursery, tmp_path: Path
) -> None:
    ours, terminal = pty.openpty()
    process = nursery.start(
        "tests.agents.supervising_program:run_in_terminal", str(tmp_path), descriptors={0: terminal}
    )
    runs.said()

    os.write(ours, b"\x03")

    assert runs.said(1) == ["0", "done"]
    assert process.wait() == 0
    os.close(ours)
    os.close(terminal)


# ---------------------------------------------------------------- nobody else is touched


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of our business."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def record_of(process: subprocess.Popen[bytes]) -> ProcessRecord:
    stat = stat_of(process.pid)
    assert stat is not None
    return ProcessRecord(
        pid=stat.pid,
        started_ticks=stat.ticks,
        keeper_pid=DEAD_PID,
        keeper_started_ticks=1,
        supervisor_pid=DEAD_PID,
        supervisor_started_ticks=1,
        boot_id=boot_id(),
        pid_namespace=pid_namespace(),
        nonce="0" * 32,
    )


def test_who_got_the_pid_of_an_agent_later_is_not_touched(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    record = record_of(bystander)
    changes: list[dict[str, Any]] = [
        {"started_ticks": record.started_ticks - 1},
        {"started_ticks": record.started_ticks - 1, "keeper_pid": bystander.pid, "keeper_started_ticks": 1},
        {"boot_id": "another boot"},
        {"pid_namespace": "pid:[1]"},
        {"supervisor_pid": bystander.pid, "supervisor_started_ticks": record.started_ticks},
    ]

    for change in changes:
        (tmp_path / "process.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(record, **change)))
        assert clean_up(tmp_path) is None

    assert bystander.poll() is None


def test_the_very_process_of_the_record_is_ended(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    (tmp_path / "process.json").write_bytes(msgspec.json.encode(record_of(bystander)))

    left = clean_up(tmp_path)

    assert left is not None
    assert (left.pid, left.killed) == (bystander.pid, 1)
    assert bystander.wait() == -signal.SIGKILL


def test_a_folder_where_nothing_ran_or_all_has_ended_is_left_alone(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    assert clean_up(tmp_path) is None
    (tmp_path / "process.json").write_bytes(msgspec.json.encode(record_of(bystander)))
    (tmp_path / "exit.json").write_text("{}")

    assert clean_up(tmp_path) is None

    assert bystander.poll() is None
