"""The demo's worker processes: who works, and who goes on when one is killed.

The director forks, which a process with the OS threads of a test run must not do: it is a program of its own here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

DIRECTOR = """
import asyncio, sys
from pathlib import Path
from sennit.cli.demo import fleet
from sennit.cli.demo.crew import crew

async def working(n):
    while True:
        pids = {worker.pid for worker in await fleet.app.store.workers() if worker.role == "worker"}
        if len(pids) == n:
            return pids
        await asyncio.sleep(0.005)

async def direct(hands):
    first, *_ = hands.processes
    hands.start({}, n=1)
    assert await working(1) == {first.pid}
    watching = asyncio.create_task(hands.watch())
    first.kill()
    assert await working(2) == {process.pid for process in hands.processes[1:]}
    watching.cancel()
    await hands.dismiss()
    print(*[process.returncode for process in hands.processes], list(hands.killed_us) == [first.pid])

folder = Path(sys.argv[1])
url = f"sqlite:///{folder}/demo.db"
with crew(url, n=3, log=folder / "log") as hands:
    fleet.app.use(url)
    asyncio.run(direct(hands))
    fleet.app.close()
"""


def test_workers_that_wait_go_on_when_the_only_one_that_works_is_killed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DIRECTOR, tmp_path], capture_output=True, text=True, check=False)

    assert done.stderr == ""
    assert done.stdout == "-9 0 0 True\n"
    assert (tmp_path / "log").read_text(encoding="utf-8") == ""


def test_workers_that_were_never_let_work_end_with_a_director_that_is_killed(tmp_path: Path) -> None:
    killed = "print(*[p.pid for p in hands.processes], flush=True); import os; os.kill(os.getpid(), 9)"
    program = DIRECTOR.replace("asyncio.run(direct(hands))", killed)

    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True) as director:
        assert director.stdout is not None
        pids = [int(pid) for pid in director.stdout.read().split()]

    assert len(pids) == 3
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
    assert alive == []
