"""What cannot be started is a clear error, and nothing of it is left."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sennit.errors import AgentError, AgentMissing
from tests.agents.programs import Runs, on_a_loop, supervising


def missing(_: Path) -> str:
    return "no-such-agent-program"


def missing_file(folder: Path) -> str:
    return str(folder / "none")


def not_executable(folder: Path) -> str:
    (folder / "agent").write_text("#!/bin/sh\n")
    return str(folder / "agent")


def no_interpreter(folder: Path) -> str:
    (folder / "agent").write_text("#!/no/such/interpreter -x\n")
    (folder / "agent").chmod(0o755)
    return str(folder / "agent")


def no_program(folder: Path) -> str:
    (folder / "agent").write_text("just text\n")
    (folder / "agent").chmod(0o755)
    return str(folder / "agent")


def a_folder(folder: Path) -> str:
    return str(folder)


def relative(_: Path) -> str:
    return "./none"


def no_name(_: Path) -> str:
    return ""


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, ["no-such-agent-program is not installed here", "on PATH=", "install it"]),
        (missing_file, ["cannot be run", "No such file", "install it"]),
        (not_executable, ["cannot be run", "Permission denied", "ls -l"]),
        (no_interpreter, ["cannot be run", "#!/no/such/interpreter", "install that"]),
        (no_program, ["is no program", "#! line"]),
        (a_folder, ["cannot be run", "Permission denied"]),
        (relative, ["./none cannot be run", "No such file"]),
        (no_name, ["no program", "argv"]),
    ],
)
@on_a_loop
async def test_a_program_that_cannot_be_run_is_missing_and_says_why(
    runs: Runs, tmp_path: Path, make: Callable[[Path], str], words: list[str]
) -> None:
    async with supervising() as supervisor:
        with pytest.raises(AgentMissing) as raised:
            await supervisor.spawn(runs.spec(make(tmp_path)))

        assert [word for word in words if word not in str(raised.value)] == []
        assert supervisor.statistics().live == supervisor.statistics().spawned == 0
        assert not any((folder / "process.json").exists() for folder in runs.folders())


@on_a_loop
async def test_a_name_is_looked_for_on_the_path_of_the_agent_and_not_on_ours(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "agent").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "agent").chmod(0o755)
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.spec("agent", environ={"PATH": str(tmp_path)}))

        assert (await process.exited).code == 7


@on_a_loop
async def test_a_folder_to_work_in_that_is_not_there_is_named(runs: Runs, tmp_path: Path) -> None:
    async with supervising() as supervisor:
        with pytest.raises(AgentError, match=r"cannot work in .*/nowhere\n.*No such file") as raised:
            await supervisor.spawn(runs.spec("true", cwd=tmp_path / "nowhere"))

    assert not isinstance(raised.value, AgentMissing)


@on_a_loop
async def test_a_run_folder_that_is_not_there_is_named(runs: Runs) -> None:
    spec = runs.spec("true")
    spec.folder.rmdir()
    async with supervising() as supervisor:
        with pytest.raises(AgentError, match="nothing can be written to"):
            await supervisor.spawn(spec)


@on_a_loop
async def test_a_prompt_that_is_too_long_for_argv_says_to_use_stdin(runs: Runs) -> None:
    async with supervising() as supervisor:
        with pytest.raises(AgentError, match="too long") as raised:
            await supervisor.spawn(runs.spec("true", "x" * 3_000_000))

    assert "stdin" in raised.value.fix


@on_a_loop
async def test_when_no_descriptor_is_left_the_error_says_what_to_raise_and_the_next_spawn_works(runs: Runs) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with supervising() as supervisor:
        await (await supervisor.spawn(runs.spec("true"))).exited
        spec = runs.spec("true", talks=True)
        for more in range(6):
            # The limit is on the number of the next descriptor.
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, hard))
            try:
                with pytest.raises(AgentError, match="refuses another agent") as raised:
                    await supervisor.spawn(spec)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert raised.value.why == os.strerror(errno.EMFILE)
            assert "ulimit -n" in raised.value.fix

        assert supervisor.statistics().live == 0
        assert (await (await supervisor.spawn(runs.spec("true"))).exited).code == 0


@on_a_loop
async def test_a_warden_that_does_not_start_is_an_error_and_the_next_spawn_tries_again(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervising() as supervisor:
        with monkeypatch.context() as patch:
            patch.setattr("sys.executable", "/bin/false")
            with pytest.raises(AgentError, match="warden of agents does not start"):
                await supervisor.spawn(runs.spec("true"))

        process: Any = await supervisor.spawn(runs.spec("true"))

        assert (await process.exited).code == 0
