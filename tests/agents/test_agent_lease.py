"""A worker that is frozen past its lease has no agent that works on, and writes nothing when it thaws."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from pathlib import Path

from sennit.execute.supervisor import Supervisor
from sennit.sync.clock import uptime_us
from sennit.testing.fakeagent import FakeAgent, append, say, touch, wait_for
from tests.agents.agents_program import fleet
from tests.agents.facts import alive, until
from tests.agents.programs import Runs
from tests.crash.nursery import Nursery
from tests.runtime.provider_facts import on_a_loop


@on_a_loop
async def test_all_that_runs_is_killed_when_the_time_of_a_supervisor_is_over_and_it_has_not_renewed(runs: Runs) -> None:
    supervisor = Supervisor()
    supervisor.hold_until(uptime_us() / 1e6 + 3600.0)
    first = await supervisor.spawn(runs.spec("sleep", "60"))
    supervisor.hold_until(uptime_us() / 1e6 + 0.05)
    ended = await first.exited
    assert (ended.cause, ended.signal) == ("lease", signal.SIGKILL)
    supervisor.hold_until(None)
    second = await supervisor.spawn(runs.spec("sh", "-c", "exit 3"))  # it holds again
    assert (await second.exited).code == 3
    await supervisor.close()


def freezes_between_writes(pid: int, pen: Path) -> bool:
    """Freeze a process; return whether it does not hold the pen of SQLite, with which it would hold up everybody."""
    os.kill(pid, signal.SIGSTOP)
    with pen.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_the_agents_of_a_frozen_worker_end_with_its_lease_and_go_on_elsewhere(tmp_path: Path, nursery: Nursery) -> None:
    fake = FakeAgent(tmp_path / "fake").does(
        append(tmp_path / "out", "one"),
        touch(tmp_path / "here"),
        wait_for(tmp_path / "go"),
        append(tmp_path / "out", "two"),
        say("both"),
    )
    (tmp_path / "work").mkdir()

    async def go() -> None:
        app = fleet(tmp_path, "claude")
        handle = await app.submit_named("worker", {"prompt": "do it"}).stored()
        frozen = nursery.start("tests.agents.agents_program:serve", str(tmp_path), "claude")
        await until((tmp_path / "here").exists)
        (run,) = fake.runs()
        while not freezes_between_writes(frozen.pid, tmp_path / "fleet.db-pen"):
            os.kill(frozen.pid, signal.SIGCONT)
        await until(lambda: not alive(run.pid))  # nobody told it: the warden has looked at the lease
        (tmp_path / "go").touch()
        other = nursery.start("tests.agents.agents_program:serve", str(tmp_path), "claude")
        result = await handle
        os.kill(frozen.pid, signal.SIGCONT)
        ledger = await app.ledger()
        other.kill()
        frozen.kill()
        app.close()
        assert (result.text, result.runs) == ("both", 2)
        assert (tmp_path / "out").read_text() == "one\ntwo\n"
        assert len(fake.sessions()) == 1
        assert (ledger.submitted, ledger.succeeded) == (1, 1)

    asyncio.run(go())
