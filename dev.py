#!/usr/bin/env python3
"""The one command of this repository: makes the environment when it must, then runs what you asked for.

    python3 dev.py demo [PATH]          the demonstration, on a folder of Python code (default: sennit itself)
    python3 dev.py test [pytest args]   what CI runs: format, lint, types, layers, tests
    python3 dev.py check                the same without the tests
    python3 dev.py bench [args]         bench/run.py; with --peers beside other queues, in `.venv-bench`
    python3 dev.py setup                only make `.venv`

It needs Python 3.11 and nothing else; `test` also gets PostgreSQL and Redis where they are missing (dev_servers.py).
`.venv` holds a stamp of what it was made from, and the stamp decides:

    stamp fits                          ─► use it (well under a second)
    pyproject or constraints changed    ─► install again into it
    "installing" (interrupted)          ─► make it anew
    other Python, or the folder moved   ─► make it anew
    no stamp                            ─► install into it if pip works there, else make it anew
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from xml.etree import ElementTree as ET

import dev_servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).resolve().parent
PYTHON_MIN = (3, 11)
STAMP_FILE = "dev.stamp"
INSTALLING = "installing"
USE, UPDATE, REBUILD = "use", "update", "rebuild"
T = TypeVar("T")
Stage = tuple[str, list[str]]  # its name, and what to run
OFFLINE_SIGNS = (
    "name resolution",
    "failed to establish a new connection",
    "network is unreachable",
    "connection refused",
    "failed to lookup address",
    "dns error",
    "timed out",
    "(from versions: none)",  # what pip says last, when it hides why the index gave it nothing
)


class Stop(Exception):
    """Ends the command with a message that says what happened, why, and what to do now."""

    def __init__(self, what: str, *, why: str, fix: str) -> None:
        super().__init__(f"dev.py: {what}\n  why: {why}\n  fix: {fix}")


# ---------------------------------------------------------------- the environment


class Stamp(NamedTuple):
    """What an environment is made from."""

    place: str  # the interpreter and the folder; other ones need a new environment
    inputs: str  # the wanted packages; other ones can be installed into the same environment

    def text(self) -> str:
        """Return what the stamp file holds once the environment is complete."""
        return f"{self.place}\n{self.inputs}\n"


class Environment(NamedTuple):
    """One virtual environment and the extras of sennit that belong in it."""

    folder: Path
    extras: str

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def stamp_file(self) -> Path:
        """Holds the stamp, or INSTALLING while it is being filled."""
        return self.folder / STAMP_FILE


def wanted_stamp(env: Environment, root: Path = ROOT) -> Stamp:
    """Return the stamp that `env` has when it is up to date."""
    inputs = hashlib.sha256(env.extras.encode())
    for name in ("pyproject.toml", "constraints.txt"):
        content = (root / name).read_bytes()
        inputs.update(b"%d " % len(content) + content)
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Stamp(f"{sys.implementation.name} {version} {sys.base_prefix} {env.folder}", inputs.hexdigest())


def decide(found: str | None, wanted: Stamp, *, usable: bool) -> str:
    """Return USE, UPDATE or REBUILD.

    Args:
        found: the text of the stamp file, None if there is none.
        usable: packages can be installed into what is there; only asked where that makes a difference.
    """
    if found == wanted.text():
        return USE
    if found is not None and not found.startswith(wanted.place + "\n"):
        return REBUILD
    return UPDATE if usable else REBUILD


def read_stamp(env: Environment) -> str | None:
    """Return the text of the stamp file, None if there is none."""
    try:
        return env.stamp_file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def ensure(env: Environment) -> Path:
    """Make `env` what it should be and return its interpreter.

    Raises:
        Stop: it cannot be made; the message says why.
    """
    wanted = wanted_stamp(env)
    if read_stamp(env) == wanted.text() and env.python.exists():
        return env.python
    with one_at_a_time():
        step = decide(read_stamp(env), wanted, usable=is_usable(env))
        if step == USE and is_usable(env):
            return env.python
        started_s = time.monotonic()
        print(f"dev.py: {'installing into' if step == UPDATE else 'making'} {env.folder.name} …", flush=True)
        if step != UPDATE:
            make(env)
        env.stamp_file.write_text(INSTALLING, encoding="utf-8")
        install(env)
        env.stamp_file.write_text(wanted.text(), encoding="utf-8")
        print(f"dev.py: {env.folder.name} is ready ({time.monotonic() - started_s:.1f} s)", flush=True)
    return env.python


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the right to change an environment; a second dev.py in the same checkout waits for it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("dev.py: another dev.py is making the environment; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_usable(env: Environment) -> bool:
    """Return whether the interpreter runs and packages can be installed with it."""
    probe = ["-c", "pass"] if shutil.which("uv") else ["-m", "pip", "--version"]
    try:
        return subprocess.run([str(env.python), *probe], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def make(env: Environment) -> None:
    """Make an empty environment in place of whatever is there.

    Raises:
        Stop: there is neither uv nor a whole `venv` module.
    """
    if env.folder.exists():
        shutil.rmtree(env.folder)
    base_python = getattr(sys, "_base_executable", None) or sys.executable  # not one inside what was just removed
    if shutil.which("uv"):
        code, output = capture(["uv", "venv", "--quiet", "--python", base_python, str(env.folder)])
    else:
        code, output = capture([base_python, "-m", "venv", str(env.folder)])
    if code:
        print(output, file=sys.stderr)
        raise Stop(
            f"{env.folder.name} could not be made",
            why="Python's venv module needs ensurepip, which some systems package apart, and room on the disk",
            fix="install it (Debian, Ubuntu: apt install python3-venv) or uv, then run the same command again",
        )


def install(env: Environment) -> None:
    """Install sennit (editable) and the extras, in the versions of constraints.txt.

    Raises:
        Stop: the installer failed.
    """
    what = ["--constraint", str(ROOT / "constraints.txt"), "--editable", f"{ROOT}[{env.extras}]"]
    if shutil.which("uv"):
        code, output = capture(["uv", "pip", "install", "--python", str(env.python), *what])
    else:
        code, output = capture([str(env.python), "-m", "pip", "install", "--disable-pip-version-check", *what])
    if code:
        print("\n".join(output.splitlines()[-20:]), file=sys.stderr)
        raise install_failed(output)


def install_failed(output: str) -> Stop:
    """Return the error for what an installer has printed."""
    if any(sign in output.lower() for sign in OFFLINE_SIGNS):
        return Stop(
            "the packages could not be downloaded",
            why="the package index does not answer or lacks them; the first run needs a network, later ones do not",
            fix="check the connection, the proxy and `pip config list`, then run the same command again",
        )
    return Stop(
        "the packages could not be installed",
        why="the installer's last lines are above",
        fix="mend what they name, then run the same command again; it starts from a clean environment",
    )


# ---------------------------------------------------------------- running things


def capture(argv: Sequence[str]) -> tuple[int, str]:
    """Run silently; return the exit code and everything it printed."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=ROOT)
    return done.returncode, done.stdout


def timed(function: Callable[[Sequence[str]], T], argv: Sequence[str]) -> tuple[T, float]:
    """Return what a function returns for `argv`, and the seconds it took."""
    started_s = time.monotonic()
    return function(argv), time.monotonic() - started_s


def run(argv: Sequence[str]) -> int:
    """Run on our terminal, in the repository, and return the exit code.

    Ctrl-C reaches the child itself; it gets the time it needs to stop in order.

    Raises:
        KeyboardInterrupt: Ctrl-C came while it ran; by now it has ended.
    """
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: interrupts.append(number))
    try:
        code = subprocess.call(argv, cwd=ROOT)
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt
    return code


def become(python: Path, *args: str) -> None:
    """Replace this process, so that signals and the exit code are the program's own."""
    sys.stdout.flush()
    os.execv(python, [str(python), *args])  # noqa: S606 - no shell is wanted


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------- commands


MAIN = Environment(ROOT / ".venv", "dev,rich")
BENCH = Environment(ROOT / ".venv-bench", "bench,rich")


def lint_stages(python: Path) -> list[Stage]:
    """Return the checks that read the code without running it, and take no time."""
    tool = str(python)
    return [
        ("format", [tool, "-m", "ruff", "format", "--check", "."]),
        ("lint", [tool, "-m", "ruff", "check", "."]),
        ("layers", [str(python.with_name("lint-imports")), "--no-logo"]),
    ]


def types_stage(python: Path) -> Stage:
    """Return the check of types: half a minute of one core when its cache is cold, so it takes what others leave."""
    return "types", ["nice", str(python), "-m", "mypy"]


def run_stages(stages: Sequence[Stage], *, beside: Stage) -> int:
    """Run every stage, also after one has failed, and one beside them all; say how each went. Return 0 if all passed."""
    ended: list[tuple[str, int, float]] = []
    with ThreadPoolExecutor(1) as pool:
        silent = pool.submit(timed, capture, beside[1])
        for name, argv in stages:
            print_title(name)
            code, took_s = timed(run, argv)
            ended.append((name, code, took_s))
        (code, output), took_s = silent.result()
    print_title(beside[0])
    print(output, end="")
    ended.append((beside[0], code, took_s))
    print(
        "\n" + "\n".join(f"  {'FAIL' if code else 'ok':<5} {name:<8} {took_s:7.1f} s" for name, code, took_s in ended)
    )
    return 1 if any(code for _, code, _ in ended) else 0


def print_title(name: str) -> None:
    """Head what a stage prints."""
    print(f"\n── {name} " + "─" * (60 - len(name)), flush=True)


def check(_args: list[str]) -> int:
    """Run the checks without the tests."""
    python = ensure(MAIN)
    return run_stages(lint_stages(python), beside=types_stage(python))


def test(args: list[str]) -> int:
    """Run the checks and the tests, then say what was skipped and why."""
    python = ensure(MAIN)
    ensure_servers(python)
    # Hundreds of programs import sennit; where the environment forbids bytecode, as in many containers, each would compile it.
    capture([str(python), "-m", "compileall", "-q", "src"])
    with tempfile.TemporaryDirectory(prefix="sennit-test-") as folder:
        report = Path(folder, "junit.xml")
        # One more than cores: a third of the time a test waits for something, an end of a pause for example.
        pytest = [str(python), "-m", "pytest", "-n", str(cores() + 1), f"--junit-xml={report}", *args]
        code = run_stages([*lint_stages(python), ("tests", pytest)], beside=types_stage(python))
        if report.exists():
            print("\n".join(outcome(report.read_text(encoding="utf-8"))))
    return code


def ensure_servers(python: Path) -> None:
    """Get PostgreSQL and Redis if they are missing; without them tests are skipped, and in CI that must not pass.

    Raises:
        Stop: this is CI and one of them cannot be had.
    """
    for problem in dev_servers.ensure(python, lambda text: print(f"dev.py: {text}", flush=True)):
        if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
            raise Stop(f"{problem.name} is missing and could not be installed", why=problem.why, fix=problem.fix)
        print(
            f"dev.py: {problem.name} is missing, its tests will be skipped\n  why: {problem.why}\n  fix: {problem.fix}"
        )


def outcome(junit_xml: str) -> list[str]:
    """Return the lines that sum up a test run: the counts, then each reason for a skip with its count."""
    cases = list(ET.fromstring(junit_xml).iter("testcase"))
    bad = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    reasons = Counter(skip.get("message", "") for case in cases for skip in case.iter("skipped"))
    skipped = sum(reasons.values())
    lines = [f"  {len(cases) - bad - skipped} tests passed, {bad} failed, {skipped} skipped"]
    lines += [f"    {count} × skipped: {reason}" for reason, count in reasons.most_common()]
    return lines


def setup(_args: list[str]) -> int:
    """Make `.venv`."""
    print(f"dev.py: environment {ensure(MAIN)}")
    return 0


def demo(args: list[str]) -> int:
    """Run the demonstration."""
    become(ensure(MAIN), "-m", "sennit", "demo", *args)
    return 0


def bench(args: list[str]) -> int:
    """Run the benchmarks; peers are installed only when they are asked for."""
    become(ensure(BENCH if "--peers" in args else MAIN), str(ROOT / "bench" / "run.py"), *args)
    return 0


COMMANDS = {"demo": demo, "test": test, "check": check, "bench": bench, "setup": setup}


def require_python(version: tuple[int, ...]) -> None:
    """Refuse an interpreter that is too old.

    Raises:
        Stop: it is; names a newer one if there is one on PATH.
    """
    if version >= PYTHON_MIN:
        return
    newer = [name for name in ("python3.13", "python3.12", "python3.11", "python3.14") if shutil.which(name)]
    raise Stop(
        f"this is Python {version[0]}.{version[1]}, sennit needs 3.11 or newer",
        why="it uses TaskGroup, ExceptionGroup and asyncio.Runner, which came with 3.11",
        fix=f"run `{newer[0]} dev.py …`" if newer else "install Python 3.11 or newer and run dev.py with it",
    )


def main(argv: list[str]) -> int:
    """Run one command and return the exit code."""
    if not argv or argv[0] not in COMMANDS:
        asked_for_help = bool(argv) and argv[0] in {"-h", "--help", "help"}
        print(__doc__, file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    try:
        require_python(sys.version_info[:3])
        return COMMANDS[argv[0]](argv[1:])
    except Stop as stop:
        print(stop, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndev.py: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
