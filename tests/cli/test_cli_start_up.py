"""How fast `sennit` starts, and what it must not import for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HEAVY = {"asyncio", "cronsim", "msgspec", "psutil", "rich", "sqlite3", "structlog", "sennit.runtime.app"}


def test_version_and_help_import_nothing_heavy() -> None:
    program = (
        "import sys; from sennit.cli.main import main; main(['--version']); main(['--help']); "
        "print(*sorted(sys.modules), file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("sennit ")
    assert HEAVY & set(done.stderr.split()) == set()


def test_status_of_a_store_does_without_the_runtime_that_works(tmp_path: Path) -> None:
    """Half of its processor time went into modules that a look at a store never uses."""
    url = f"sqlite:///{tmp_path}/fleet.db"
    program = (
        f"import sys; from sennit.cli.main import main; main(['db', 'init', '--db', '{url}']); "
        f"assert main(['status', '--db', '{url}']) == 0; print(*sorted(sys.modules), file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    never = {
        "sennit.runtime.app",
        "sennit.submit.client",
        "sennit.execute.worker",
        "sennit.schedule.dispatcher",
        "psutil",
    }
    assert never & set(done.stderr.split()) == set()


def test_version_takes_less_than_100_ms_of_processor_time() -> None:
    """Processor time, the least of five: other tests share this machine."""

    def cpu_s() -> float:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "sennit", "--version"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
        )
        _, status, usage = os.wait4(pid, 0)
        assert status == 0
        return usage.ru_utime + usage.ru_stime

    assert min(cpu_s() for _ in range(5)) < 0.1
