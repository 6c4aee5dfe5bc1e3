"""No process of an agent outlives it, however it was begun and whatever it ignores."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from sennit.execute.agent_proc import stat_of
from tests.agents.programs import Runs, has_ended, marked, on_a_loop, stdout, supervising
from tests.agents.supervising_program import DAEMON, WIPE

# Blocks TERM before it says that it is up, so that no TERM is lost in a window; waits for $GATE, if there is one.
HEEDS_TERM = (
    sys.executable,
    *("-I", "-S", "-c"),
    """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
open(os.environ["SAID"], "w").write("up\\n")
signal.sigwait([signal.SIGTERM])
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
open(os.environ.get("GATE", os.devnull)).read()
print("saved")
raise SystemExit(9)
""",
)


def lives(pid: int) -> bool:
    stat = stat_of(pid)
    return stat is not None and not stat.is_dead


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000 & echo $! >$SAID; exit 5",
        "setsid sleep 1000 & echo $! >$SAID; exit 5",
        "sh -c 'sleep 1000 & echo $! >$SAID; wait' & sleep 1000 & echo $! >$SAID; read _ <$GATE; exit 5",
        WIPE + DAEMON + "read _ <$GATE; exit 5",
    ],
    ids=["child that holds stdout", "child in another session", "grandchild", "daemon"],
)
@on_a_loop
async def test_what_outlives_a_program_is_killed_before_its_exit_is_told(
    runs: Runs, script: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell(script, environ={"GATE": str(gate)}))
        pids = [int(pid) for pid in runs.said(script.count(">$SAID"))]
        if "$GATE" in script:
            gate.write_text("go\n")

        ended = await process.exited

        assert [pid for pid in pids if lives(pid)] == []
        assert ended.code == 5
        assert ended.left_behind >= 1
        assert marked([process.folder]) == []
        assert supervisor.statistics().left_behind == ended.left_behind


@on_a_loop
async def test_a_program_that_heeds_term_ends_by_it(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.spec(*HEEDS_TERM))
        runs.said()

        process.stop("idle", term_s=1000)
        ended = await process.exited

    assert (ended.code, ended.cause, stdout(process)) == (9, "idle", b"saved\n")


@on_a_loop
async def test_a_program_that_ignores_term_is_killed_with_all_it_has(runs: Runs) -> None:
    script = "trap '' TERM; " + WIPE + DAEMON + "echo $$ >$SAID; while :; do sleep 1000; done"
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell(script))
        pids = [int(pid) for pid in runs.said(2)]

        process.stop("wall", term_s=0.05)
        process.stop("stopped", term_s=1000)
        ended = await process.exited

    assert (ended.signal, ended.cause) == (signal.SIGKILL, "wall")
    assert [pid for pid in pids if lives(pid)] == []


@on_a_loop
async def test_after_term_the_children_of_a_wrapper_have_their_time_too(runs: Runs) -> None:
    """The shell dies of TERM at once; the program it wraps, in a session of its own, writes down its work first."""
    gate = runs.folder / "gate"
    os.mkfifo(gate)
    async with supervising() as supervisor:
        process = await supervisor.spawn(
            runs.spec("sh", "-c", 'setsid "$@" & wait', "sh", *HEEDS_TERM, environ={"GATE": str(gate)})
        )
        runs.said()

        process.stop("wall", term_s=1000)
        assert has_ended(process.pid)
        gate.write_text("go\n")
        ended = await process.exited

    assert (ended.signal, ended.cause, ended.left_behind) == (signal.SIGTERM, "wall", 0)
    assert stdout(process) == b"saved\n"


@on_a_loop
async def test_what_was_forked_while_term_was_sent_hears_of_it_when_the_program_has_ended(runs: Runs) -> None:
    """The program heeds TERM by starting another one, as a shell may just then."""
    fork = "import os; os.spawnvp(os.P_NOWAIT, 'sleep', ['sleep', '1000'])"
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.spec(*HEEDS_TERM[:-1], HEEDS_TERM[-1].replace("print", fork + "; print")))
        runs.said()

        process.stop("wall", term_s=1000)
        ended = await process.exited

    assert (ended.code, ended.cause, ended.left_behind) == (9, "wall", 0)


@pytest.mark.parametrize("how", ["stop", "kill"])
@on_a_loop
async def test_a_frozen_agent_can_be_ended(runs: Runs, how: str) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell("sleep 1000 & echo up >$SAID; kill -STOP $$; exit 4"))
        runs.said()

        if how == "stop":
            process.stop("stopped", term_s=1000)
        else:
            process.kill("stopped")
        ended = await process.exited

    assert (ended.signal, ended.cause) == (signal.SIGTERM if how == "stop" else signal.SIGKILL, "stopped")


@on_a_loop
async def test_a_program_that_ended_by_itself_has_no_other_cause(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell("exit 6"))
        ended = await process.exited
        process.stop("wall", term_s=1)
        process.kill("idle")

    assert (ended.code, ended.cause) == (6, "")


@on_a_loop
async def test_a_daemon_that_ends_by_itself_is_not_kept_as_a_zombie(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell("(sh -c 'echo $$ >$SAID' &); exec sleep 1000"))
        orphan = int(runs.said()[0])

        while stat_of(orphan) is not None:
            os.sched_yield()

        process.kill("stopped")
        assert (await process.exited).left_behind == 0


@on_a_loop
async def test_what_the_terminal_sends_does_not_reach_agents(runs: Runs) -> None:
    """They have neither our session nor our group, so a ctrl-C is ours to handle; warden and keepers ignore it as well."""
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell("tty </dev/tty; echo $?; echo up >$SAID; sleep 1000"))
        runs.said()
        warden = supervisor.statistics().warden_pid

        assert {os.getsid(pid) for pid in (process.pid, process.keeper_pid)} == {process.keeper_pid}
        assert os.getsid(warden) == warden
        for pid in (warden, process.keeper_pid):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
        other = await supervisor.spawn(runs.spec("true"))
        await other.exited

        assert lives(process.pid)
        assert stdout(process) != b"0\n"
        process.kill("stopped")
        assert (await process.exited).cause == "stopped"
