"""Run the cases side by side and print one table: sennit, raw SQLite and the peers, round by round.

    python bench/run.py [--peers huey dbos] [--rounds 3] [--workloads chain fan] [--json history.jsonl]

Each case of each side is a fresh process. Within a round the sides take turns case by case, so that a slow minute of
the machine hits all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from cases import CASES, Case
from report import Answer, Machine, Report, page, reference_page

BENCH_DIR: Final = Path(__file__).resolve().parent
CASE_TIMEOUT_S: Final = 240.0
ASKS_MAX: Final = 4
CALM_LOOK_S: Final = 0.5
CALM_WAIT_S: Final = 60.0
CALM_PATIENCE_S: Final = 1200.0
ERROR_LINES: Final = 25
PEERS: Final = ("huey", "dbos")
MODULES: Final = {"sennit": "workloads", "raw": "limits", "huey": "peers.huey_peer", "dbos": "peers.dbos_peer"}
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------------------------------------------ running


class Surroundings:
    """What else the machine does between two moments: the load, and the CPU time that is not our children's."""

    def __init__(self) -> None:
        self.load_before = os.getloadavg()[0]
        self._began_s = time.monotonic()
        self._others_s = self._others()

    @staticmethod
    def _others() -> float:
        # user nice system idle iowait irq softirq steal, in ticks, of all cores (proc(5)).
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return (sum(ticks) - ticks[3] - ticks[4]) / TICKS_PER_S - sum(used.ru_utime + used.ru_stime for used in ours)

    def facts(self) -> dict[str, float]:
        """Return the fields of an `Answer` that say how disturbed it was."""
        others_s = max(0.0, self._others() - self._others_s)
        return {
            "load_before": self.load_before,
            "load_after": os.getloadavg()[0],
            "others_percent": 100 * others_s / (time.monotonic() - self._began_s),
        }


class Calm:
    """What may be spent on a busy machine: on waiting for it, and on asking again what it has disturbed.

    Args:
        percent: what other programs may take of a core; infinite is not to care.
        patience_s: for the whole run; when it is used up, answers are taken as they come.
    """

    def __init__(self, percent: float, *, patience_s: float) -> None:
        self._percent = percent
        self._left_s = patience_s

    def answer(self, ask_once: Callable[[], Answer]) -> Answer:
        """Return the least disturbed of as many answers as it takes, ASKS_MAX at most, whatever its figures are."""
        began_s = time.monotonic()
        asked = [ask_once()]
        while asked[-1].others_percent > self._percent and len(asked) < ASKS_MAX and self._left_s > 0:
            until_s = time.monotonic() + min(self._left_s, CALM_WAIT_S)
            while self._others_percent() > self._percent and time.monotonic() < until_s:
                pass  # looking takes CALM_LOOK_S
            asked.append(ask_once())
        if len(asked) > 1:
            self._left_s -= time.monotonic() - began_s
        return min(asked, key=lambda one: one.others_percent)

    @staticmethod
    def _others_percent() -> float:
        around = Surroundings()
        time.sleep(CALM_LOOK_S)
        return around.facts()["others_percent"]


def ask(module: str, case: Case, *, python: str, folder: str, quick: bool) -> tuple[dict[str, float], str]:
    """Run one case of the side in `module`; return its figures, or what went wrong, so that the other sides still run."""
    path = os.pathsep.join([str(BENCH_DIR), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    process = subprocess.Popen(
        [python, "run_case.py", module, case.name, *(["quick"] if quick else [])],
        cwd=BENCH_DIR,
        env=os.environ | {"PYTHONPATH": path, "TMPDIR": folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=CASE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {}, f"no answer within {CASE_TIMEOUT_S:.0f} s"
    except BaseException:  # Ctrl-C, or end_in_order: the case and its workers are a session of their own
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode:
        last_lines = "\n".join(err.splitlines()[-ERROR_LINES:])
        return {}, f"exit code {process.returncode}\n{last_lines}"
    return json.loads(out.splitlines()[-1]), ""


def run(
    sides: dict[str, str],
    cases: list[Case],
    *,
    rounds: int,
    folder: str | None,
    quick: bool,
    calm: Calm,
    modules: Mapping[str, str] = MODULES,
    prepared: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[Answer]:
    """Ask every side every case in every round; the order of the sides turns by one each round.

    Args:
        sides: name -> the Python that has it installed.
        modules: name -> the module that answers for it.
        prepared: entered before each question and left after it: a database for it alone.
        folder: where the databases live; the system's temporary folder if None.
        quick: in the smallest sizes, to see that everything works.
    """

    def answer(round_: int, case: Case, side: str) -> Answer:
        around = Surroundings()
        with prepared():
            figures, error = ask(modules[side], case, python=sides[side], folder=private, quick=quick)
        return Answer(round_=round_, case=case.name, side=side, figures=figures, error=error, **around.facts())

    answers = []
    names = list(sides)
    with tempfile.TemporaryDirectory(dir=folder, prefix="sennit-bench-", ignore_cleanup_errors=True) as private:
        for round_ in range(1, rounds + 1):
            for case in cases:
                for side in names:
                    progress(f"round {round_}/{rounds}  {case.name} {side}")
                    answers.append(calm.answer(partial(answer, round_, case, side)))
            names = names[1:] + names[:1]
    progress("")
    return answers


def progress(text: str) -> None:
    """Say on a terminal what runs now, on one line that the next call overwrites."""
    if sys.stderr.isatty():
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


def end_in_order() -> None:
    """Let SIGTERM unwind the stack, so that what was started is ended and removed."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


# ---------------------------------------------------------------------------------------------------- the command


def version_of(side: str, python: str) -> str:
    """Return the version that this Python would run; "not installed" is an answer for the report."""
    script = f"import importlib.metadata as m; print(m.version({side!r}))"
    if side == "sennit":
        script = "import sennit; print(sennit.__version__)"
    asked = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else "not installed"


def machine_facts(sides: dict[str, str]) -> Machine:
    """Return what a reader needs to judge the figures."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return Machine(
        cpu=next(names, platform.processor() or "unknown CPU"),
        cores=os.cpu_count() or 1,
        kernel=platform.release(),
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
        versions={side: version_of(side, python) for side, python in sides.items() if side != "raw"},
    )


def parse_common(parser: argparse.ArgumentParser, argv: list[str], *, files: str) -> argparse.Namespace:
    """Add the options that every benchmark has, and parse.

    Args:
        files: what lies on the disk that is measured.
    """
    parser.add_argument(
        "--quick", action="store_true", help="the smallest sizes: everything runs, no figure means much"
    )
    calm = "wait, and ask again, while other programs take more than this of one core; the calmest answer counts"
    parser.add_argument("--calm", type=float, default=float("inf"), metavar="PERCENT", help=calm)
    parser.add_argument("--dir", help=f"put {files} on this disk; never on a tmpfs, where fsync is free")
    parser.add_argument("--json", type=Path, help="append the run to this file, one line of JSON")
    parser.add_argument("--markdown", type=Path, help="write the page for docs/reference to this file")
    parser.add_argument("--table", action="store_true", help="run nothing: take the last run in --json again")
    options = parser.parse_args(argv)
    if options.table and not options.json:
        parser.error("--table takes a run from a history: name it with --json")
    return options


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="rivals to run beside sennit; all without a name")
    parser.add_argument(
        "--peer-python", type=os.path.abspath, default=sys.executable, help="the Python that has bench/requirements.txt"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workloads", nargs="*", metavar="CASE", choices=[case.name for case in CASES])
    parser.add_argument("--skip-sennit", action="store_true", help="only raw SQLite and the peers")
    return parse_common(parser, argv, files="the databases")


def measured(options: argparse.Namespace, argv: list[str]) -> Report:
    """Run what the options ask for."""
    peers = () if options.peers is None else options.peers or PEERS
    end_in_order()
    sides = {"raw": sys.executable, "sennit": sys.executable} | dict.fromkeys(peers, options.peer_python)
    if options.skip_sennit:
        del sides["sennit"]
    cases = [case for case in CASES if not options.workloads or case.name in {"fsync", *options.workloads}]
    machine = machine_facts(sides)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    calm = Calm(options.calm, patience_s=CALM_PATIENCE_S)
    answers = run(sides, cases, rounds=options.rounds, folder=options.dir, quick=options.quick, calm=calm)
    return Report(at=at, command=shlex.join(["python", "bench/run.py", *argv]), machine=machine, answers=answers)


def main(argv: list[str]) -> int:
    """Run, print and remember; 1 if sennit or raw SQLite failed somewhere."""
    if argv[:1] == ["postgres"]:
        import postgres  # noqa: PLC0415 - needs psycopg, which SQLite's benchmarks do not

        return postgres.main(argv[1:])
    if argv[:1] == ["pools"]:
        import pools  # noqa: PLC0415 - has numpy and the standard pools, which would show in the memory of the others

        return pools.main(argv[1:])
    if argv[:1] == ["agents"]:
        import agents  # noqa: PLC0415 - as above

        return agents.main(argv[1:])
    options = parse(argv)
    if options.table:
        report = msgspec.json.decode(options.json.read_bytes().splitlines()[-1], type=Report)
    else:
        report = measured(options, argv)
        if options.json:
            with options.json.open("ab") as history:
                history.write(msgspec.json.encode(report) + b"\n")
    print(page(report))
    if options.markdown:
        options.markdown.write_text(reference_page(report), encoding="utf-8")
    return int(any(answer.error for answer in report.answers if answer.side in {"sennit", "raw"}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
