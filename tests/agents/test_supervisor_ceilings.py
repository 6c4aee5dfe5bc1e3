"""What an agent may take: output, memory, disk; and that its secrets are not written down."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sennit.errors import AgentError
from tests.agents.programs import Runs, on_a_loop, stdout, supervising

KEY = 'sk-test-"quoted"/0123456789abcdef'


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "sennit-test", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounting.returncode:
        pytest.skip("only root may mount a small disk; test_a_file_that_may_not_grow_… says the same of a limit")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# ---------------------------------------------------------------- output


@on_a_loop
async def test_a_flood_is_cut_at_its_ceiling_and_the_program_killed(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.shell("yes oops >&2 & yes", output_bytes_max=1_000_000))

        ended = await process.exited

    sizes = [(process.folder / name).stat().st_size for name in ("stdout.log", "stderr.log")]
    assert (ended.cause, ended.signal) == ("output", signal.SIGKILL)
    assert sum(sizes) == 1_000_000


@on_a_loop
async def test_just_as_much_as_is_allowed_is_no_flood(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(
            runs.shell("head -c 60000 /dev/zero; head -c 40000 /dev/zero >&2", output_bytes_max=100_000)
        )

        ended = await process.exited

    assert (ended.code, ended.cause) == (0, "")


@on_a_loop
async def test_much_output_passes_through_little_memory(runs: Runs) -> None:
    async with supervising() as supervisor:
        process = await supervisor.spawn(
            runs.shell(
                "echo up >$SAID; read _; head -c 30000000 /dev/zero; echo done >$SAID; read _",
                talks=True,
                secrets=(KEY,),
            )
        )

        def peak_bytes() -> int:
            status = Path(f"/proc/{process.keeper_pid}/status").read_text()
            found = re.search(r"VmHWM:\s+(\d+) kB", status)
            assert found is not None
            return int(found[1]) * 1024

        runs.said()
        before = peak_bytes()
        process.write(b"go\n")
        runs.said()
        assert peak_bytes() - before < 4_000_000
        process.write(b"go\n")
        await process.exited

    assert (process.folder / "stdout.log").stat().st_size == 30_000_000


# ---------------------------------------------------------------- secrets


@on_a_loop
async def test_a_secret_never_reaches_the_files_also_when_it_comes_in_pieces_or_inside_json(runs: Runs) -> None:
    script = f"""
import json, os, sys
key = {KEY!r}
for letter in "say " + key + "!\\n":
    os.write(1, letter.encode())
print(json.dumps({{"key": key}}), json.dumps(json.dumps({{"key": key}})), flush=True)
print("oops", key, file=sys.stderr)
"""
    async with supervising() as supervisor:
        process = await supervisor.spawn(runs.spec(sys.executable, "-I", "-S", "-c", script, secrets=(KEY, "short")))

        assert (await process.exited).code == 0

    written = stdout(process)
    assert written == b'say ***!\n{"key": "***"} "{\\"key\\": \\"***\\"}"\n'
    assert (process.folder / "stderr.log").read_bytes() == b"oops ***\n"
    assert not any(KEY.encode() in file.read_bytes() for file in process.folder.iterdir())


# ---------------------------------------------------------------- memory


@on_a_loop
async def test_a_tree_that_takes_too_much_memory_is_killed_and_its_peak_told(runs: Runs) -> None:
    """It is in a grandchild, in a session of its own."""
    hungry = "import time; held = bytearray(80_000_000); time.sleep(1000)"
    async with supervising() as supervisor:
        process = await supervisor.spawn(
            runs.shell(
                'setsid "$PYTHON" -I -S -c "$HUNGRY"',
                environ={"PYTHON": sys.executable, "HUNGRY": hungry},
                memory_bytes_max=50_000_000,
            )
        )
        modest = await supervisor.spawn(runs.shell("echo up >$SAID; read _", talks=True, memory_bytes_max=50_000_000))

        ended = await process.exited

        assert (ended.cause, ended.signal) == ("memory", signal.SIGKILL)
        assert ended.memory_bytes_peak > 50_000_000
        assert not modest.exited.done()
        modest.close_stdin()
        assert (await modest.exited).cause == ""


# ---------------------------------------------------------------- disk


@on_a_loop
async def test_when_the_disk_is_full_the_agent_is_ended_and_the_cause_told(runs: Runs, small_disk: Path) -> None:
    async with supervising() as supervisor:
        on_it = Runs(small_disk)
        spec = on_it.shell("yes")
        on_it.close()  # or it could not be unmounted
        process = await supervisor.spawn(spec)

        ended = await process.exited

        assert (ended.cause, ended.signal) == ("disk", signal.SIGKILL)
        assert set(stdout(process)) == set(b"y\n")
        with pytest.raises(AgentError, match=f"nothing can be written to {small_disk}"):
            await supervisor.spawn(spec)


@on_a_loop
async def test_a_file_that_may_not_grow_is_told_as_a_disk_that_is_full(runs: Runs) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with supervising() as supervisor:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            process = await supervisor.spawn(runs.shell("yes"))  # the warden has its limits from here
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        ended = await process.exited

    assert ended.cause == "disk"
    assert len(stdout(process)) == 200_000
    assert json.loads((process.folder / "exit.json").read_text())["cause"] == "disk"


@on_a_loop
async def test_output_that_cannot_be_written_at_the_very_end_is_no_success(runs: Runs) -> None:
    spec = runs.shell("printf 'sk-test-'; exit 0", secrets=("sk-test-and-more",))  # its beginning is held back
    (spec.folder / "stdout.log").symlink_to("/dev/full")
    async with supervising() as supervisor:
        process = await supervisor.spawn(spec)

        ended = await process.exited

    assert (ended.code, ended.cause) == (0, "disk")
