"""The supervisor: a program runs, is fed, is known, and its end is told with all that it wrote."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from pathlib import Path

import msgspec
import pytest

from sennit.errors import AgentUnsupported, UsageError
from sennit.execute.adapters.base import Exit
from sennit.execute.agent_leftover import read_record
from sennit.execute.agent_output import tail
from sennit.execute.agent_proc import stat_of
from sennit.execute.supervisor import Supervisor
from sennit.sync.clock import boot_id
from tests.agents.programs import Runs, on_a_loop, opened, os_threads, parent_of, stdout, supervising


@pytest.mark.parametrize(
    ("script", "code", "signalled"),
    [
        ("exit 0", 0, 0),
        ("exit 3", 3, 0),
        ("kill -TERM $$", None, signal.SIGTERM),
        ("kill -KILL $$", None, signal.SIGKILL),
    ],
)
@on_a_loop
async def test_the_exit_of_a_program_is_told_as_it_was(
    runs: Runs, script: str, code: int | None, signalled: int
) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell(script))

        ended = await process.exited

    assert (ended.code, ended.signal, ended.cause, ended.left_behind) == (code, signalled, "", 0)
    assert msgspec.json.decode((process.folder / "exit.json").read_bytes(), type=Exit) == ended


@on_a_loop
async def test_when_the_exit_is_told_all_output_is_in_the_files(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell("head -c 3000000 /dev/zero; echo last >&2"))

        await process.exited

        assert stdout(process) == bytes(3_000_000)
        assert (process.folder / "stderr.log").read_bytes() == b"last\n"


@on_a_loop
async def test_a_program_that_prints_nothing_leaves_empty_files(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.spec("true"))

        assert (await process.exited).code == 0

    assert stdout(process) == b""
    assert stat.S_IMODE((process.folder / "stdout.log").stat().st_mode) == 0o600


@on_a_loop
async def test_output_is_in_the_file_while_the_program_runs(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell("echo one; echo written >$SAID; sleep 1000"))
        runs.said()
        lines = tail(process.folder / "stdout.log", until=process.exited)

        assert await anext(aiter(lines)) == b"one"
        assert not process.exited.done()


# ---------------------------------------------------------------- stdin


@on_a_loop
async def test_without_input_stdin_is_at_its_end(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell("cat; readlink /proc/self/fd/0"))

        await process.exited

    assert stdout(process) == b"/dev/null\n"


@on_a_loop
async def test_ten_megabytes_of_input_arrive_whole(runs: Runs) -> None:
    data = os.urandom(1 << 20) * 10
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.spec("cat", stdin=data))

        await process.exited

    assert stdout(process) == data


@on_a_loop
async def test_a_program_that_talks_is_answered_while_it_runs(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell("read a; echo $a >$SAID; cat", talks=True, stdin=b"first\n"))
        assert runs.said() == ["first"]
        data = os.urandom(1 << 20)  # more than the pipe holds

        process.write(data)
        process.close_stdin()
        await process.exited

    assert stdout(process) == data


@on_a_loop
async def test_writing_to_a_program_that_reads_no_more_harms_nobody(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell("exec <&-; echo deaf >$SAID; sleep 1000", talks=True))
        runs.said()

        process.write(b"x" * 1_000_000)
        process.kill("stopped")

        assert (await process.exited).cause == "stopped"
        process.write(b"late")


# ---------------------------------------------------------------- who it is


@on_a_loop
async def test_the_identity_is_on_disk_before_the_first_instruction(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(
            runs.shell('cat "$RUN"/process.json', environ={"RUN": str(runs.folder / "run0")})
        )

        await process.exited

    record = read_record(process.folder)
    assert record is not None
    assert msgspec.json.decode(stdout(process), type=type(record)) == record
    assert (record.pid, record.started_ticks, record.boot_id) == (process.pid, process.started_ticks, boot_id())
    own = stat_of(os.getpid())
    assert own is not None
    assert (record.supervisor_pid, record.supervisor_started_ticks) == (own.pid, own.ticks)


@on_a_loop
async def test_a_program_starts_clean_whatever_its_supervisor_ignores_or_has_open(runs: Runs, tmp_path: Path) -> None:
    script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l; ps -o sid=,pgid= -p $$; env | sort"
    with (tmp_path / "open").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        async with supervising() as supervisor:
            process = await supervisor.spawn(runs.shell(script, environ={"ODD": "\udcff=ü"}))
            await process.exited
            keeper = process.keeper_pid

    lines = stdout(process).split(b"\n")
    assert [line.split()[1] for line in lines[:2]] == [b"0" * 16, b"0" * 16]
    assert int(lines[2]) == 4  # 0, 1, 2 and that of ls itself
    assert [int(word) for word in lines[3].split()] == [keeper, process.pid]
    names = [line.partition(b"=")[0] for line in lines[4:] if line]
    assert set(names) == {b"ODD", b"PATH", b"PWD", b"SAID", b"SENNIT_AGENT_NONCE"}
    assert "\udcff=ü".encode("utf-8", "surrogateescape") in stdout(process)


@on_a_loop
async def test_a_program_that_is_replaced_while_it_runs_goes_on_as_it_began(runs: Runs, tmp_path: Path) -> None:
    program, newer = tmp_path / "agent", tmp_path / "agent.new"
    for path, version in ((program, "old"), (newer, "new")):
        path.write_text(f"#!/bin/sh\necho begun >$SAID\nread _\necho {version}\n")
        path.chmod(0o755)
    async with supervising() as supervisor:
        running = await supervisor.spawn(runs.spec(str(program), talks=True))
        runs.said()

        newer.rename(program)
        running.write(b"go on\n")
        await running.exited
        next_one = await supervisor.spawn(runs.spec(str(program), stdin=b"\n"))
        await next_one.exited

    assert (stdout(running), stdout(next_one)) == (b"old\n", b"new\n")


# ---------------------------------------------------------------- the supervisor itself


@on_a_loop
async def test_a_supervisor_has_nothing_until_the_first_spawn_and_after_its_end(runs: Runs) -> None:
    supervisor = Supervisor()
    descriptors = opened()
    assert supervisor.statistics().warden_pid == 0

    await (await supervisor.spawn(runs.spec("true"))).exited
    await supervisor.close()

    assert opened() == descriptors
    assert supervisor.statistics() == type(supervisor.statistics())(spawned=1)
    with pytest.raises(UsageError, match="closed"):
        await supervisor.spawn(runs.spec("true"))


@on_a_loop
async def test_closing_ends_the_agents_that_run_and_the_warden(runs: Runs) -> None:
    supervisor = Supervisor()
    agents = [await supervisor.spawn(runs.shell("trap '' TERM; sleep 1000 & wait")) for _ in range(3)]
    warden = supervisor.statistics().warden_pid
    assert {parent_of(agent.keeper_pid) for agent in agents} == {warden}

    await supervisor.close()
    await supervisor.close()

    assert [agent.exited.result().cause for agent in agents] == ["stopped"] * 3
    assert stat_of(warden) is None


@on_a_loop
async def test_whoever_waits_for_an_exit_and_is_cancelled_ends_nothing(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell("sleep 1000"))
        waiter = asyncio.ensure_future(asyncio.wait_for(process.exited, None))
        await asyncio.sleep(0)

        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter

        assert not process.exited.done()
        process.kill("stopped")
        assert (await process.exited).cause == "stopped"


@on_a_loop
async def test_a_spawn_that_is_cancelled_leaves_nothing_behind(runs: Runs) -> None:
    async with supervising() as supervisor:
        await (await supervisor.spawn(runs.spec("true"))).exited
        spawning = asyncio.create_task(supervisor.spawn(runs.shell("sleep 1000")))
        await asyncio.sleep(0)

        spawning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await spawning

        assert supervisor.statistics().live == 0
    # Closed: the warden has ended, and it ends after its last keeper.


@on_a_loop
async def test_a_hundred_agents_take_no_os_thread_and_two_descriptors_each_at_most(runs: Runs) -> None:
    async with supervising() as supervisor:
        await (await supervisor.spawn(runs.spec("true"))).exited
        threads, descriptors = os_threads(), len(opened())

        agents = await asyncio.gather(
            *(supervisor.spawn(runs.shell("echo $$; sleep 1000", talks=True)) for _ in range(100))
        )

        assert supervisor.statistics().live == 100
        assert os_threads() == threads
        assert len(opened()) == descriptors + 200
        for agent in agents:
            agent.kill("stopped")
        ends = await asyncio.gather(*(agent.exited for agent in agents))
        assert {ended.cause for ended in ends} == {"stopped"}
        assert supervisor.statistics().live == 0


@on_a_loop
async def test_a_thousand_results_with_no_reader_are_all_there_afterwards(runs: Runs) -> None:
    async with supervising() as supervisor:
        agents = [await supervisor.spawn(runs.shell("seq 1000")) for _ in range(3)]
        await asyncio.gather(*(agent.exited for agent in agents))

    assert all(stdout(agent).split() == [b"%d" % n for n in range(1, 1001)] for agent in agents)


@on_a_loop
async def test_on_a_system_without_what_it_takes_the_error_says_so(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")

    with pytest.raises(AgentUnsupported) as raised:
        await Supervisor().spawn(runs.spec("true"))

    assert raised.value.why
    assert raised.value.fix
