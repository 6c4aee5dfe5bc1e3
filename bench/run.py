"""Run the cases side by side and print one table: sennit, raw SQLite and the peers, round by round.

    python bench/run.py [--peers huey dbos] [--rounds 3] [--workloads chain fan] [--json history.jsonl]

Each case of each side is a fresh process. Within a round the sides take turns case by case, so that a slow minute of
the machine hits all of them; a ratio is the median of the ratios within the rounds, never a ratio of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
from cases import CASES, Case

BENCH_DIR: Final = Path(__file__).resolve().parent
CASE_TIMEOUT_S: Final = 120.0
ERROR_LINES: Final = 25
PEERS: Final = ("huey", "dbos")
MODULES: Final = {"sennit": "workloads", "raw": "limits", "huey": "peers.huey_peer", "dbos": "peers.dbos_peer"}

# Which way is better, by the end of a figure's name; the rest are counts and have no ratio.
BETTER_UP: Final = ("_per_s",)
BETTER_DOWN: Final = ("_ms", "_s", "_mb", "_percent")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where the figures come from."""

    cpu: str
    cores: int
    kernel: str
    python: str
    sqlite: str
    load_before: float
    versions: dict[str, str]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What one side said to one case in one round."""

    round_: int
    case: str
    side: str
    figures: dict[str, float] = {}
    error: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run: a line of the history file."""

    at: str
    command: str
    machine: Machine
    answers: list[Answer]


# ------------------------------------------------------------------------------------------------------ running


def ask(side: str, case: Case, *, python: str, round_: int, folder: str) -> Answer:
    """Run one case of one side; an error is an answer too, so that the other sides still run."""
    path = os.pathsep.join([str(BENCH_DIR), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    process = subprocess.Popen(
        [python, "run_case.py", MODULES[side], case.name],
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
        return Answer(round_=round_, case=case.name, side=side, error=f"no answer within {CASE_TIMEOUT_S:.0f} s")
    if process.returncode:
        last_lines = "\n".join(err.splitlines()[-ERROR_LINES:])
        error = f"exit code {process.returncode}\n{last_lines}"
        return Answer(round_=round_, case=case.name, side=side, error=error)
    return Answer(round_=round_, case=case.name, side=side, figures=json.loads(out.splitlines()[-1]))


def run(sides: dict[str, str], cases: list[Case], *, rounds: int, folder: str | None) -> list[Answer]:
    """Ask every side every case in every round; the order of the sides turns by one each round.

    Args:
        sides: name -> the Python that has it installed.
        folder: where the databases live; the system's temporary folder if None.
    """
    answers = []
    names = list(sides)
    with tempfile.TemporaryDirectory(dir=folder, prefix="sennit-bench-", ignore_cleanup_errors=True) as private:
        for round_ in range(1, rounds + 1):
            for case in cases:
                for side in names:
                    progress(f"round {round_}/{rounds}  {case.name} {side}")
                    answers.append(ask(side, case, python=sides[side], round_=round_, folder=private))
            names = names[1:] + names[:1]
    progress("")
    return answers


def progress(text: str) -> None:
    """Say on a terminal what runs now, on one line that the next call overwrites."""
    if sys.stderr.isatty():
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------------- the table


def values_by_round(answers: list[Answer], case: str, side: str, figure: str) -> dict[int, float]:
    """Return the figure of each round that has it."""
    mine = (answer for answer in answers if (answer.case, answer.side) == (case, side))
    return {answer.round_: answer.figures[figure] for answer in mine if figure in answer.figures}


def times_as_good(figure: str, ours: dict[int, float], theirs: dict[int, float]) -> float | None:
    """Return how many times as good we are, above 1 = better: the median of the ratios of the shared rounds."""
    both = [(ours[round_], theirs[round_]) for round_ in ours.keys() & theirs.keys()]
    if figure.endswith(BETTER_UP):
        ratios = [our / their for our, their in both if their]
    elif figure.endswith(BETTER_DOWN):
        ratios = [their / our for our, their in both if our]
    else:
        ratios = []
    return median(ratios) if ratios else None


def shown(value: float | None) -> str:
    """Return a number with three significant digits, or a dash."""
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(answers: list[Answer], sides: list[str]) -> str:
    """Return the medians and ratios as a Markdown table that also reads well as plain text."""
    others = [side for side in sides if side != "sennit"]
    rows = [["case", "figure", "sennit", *(cell for side in others for cell in (side, f"sennit / {side}"))]]
    for case in CASES:
        figures = dict.fromkeys(name for answer in answers if answer.case == case.name for name in answer.figures)
        for figure in figures:
            ours = values_by_round(answers, case.name, "sennit", figure)
            row = [case.name, figure, shown(median(ours.values()) if ours else None)]
            for side in others:
                theirs = values_by_round(answers, case.name, side, figure)
                row += [shown(median(theirs.values()) if theirs else None), shown(times_as_good(figure, ours, theirs))]
            rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def page(report: Report) -> str:
    """Return the whole output: command, machine, table, errors."""
    machine, answers = report.machine, report.answers
    fsync_ms = values_by_round(answers, "fsync", "raw", "fsync_p50_ms").values()
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    rounds = max((answer.round_ for answer in answers), default=0)
    lines = [
        f"`{report.command}`, {report.at}, {rounds} round(s), medians. A ratio says how many times as good sennit is.",
        "",
        f"- {machine.cpu}, {machine.cores} cores, Linux {machine.kernel}, load {machine.load_before:.2f} before",
        f"- Python {machine.python}, SQLite {machine.sqlite}, {versions}",
        f"- fsync p50 {shown(median(fsync_ms) if fsync_ms else None)} ms",
        "",
        table(answers, list(dict.fromkeys(answer.side for answer in answers))),
    ]
    errors = [f"- {a.case} of {a.side}, round {a.round_}:\n\n```\n{a.error}\n```" for a in answers if a.error]
    return "\n".join([*lines, *(["", "Errors:", "", *errors] if errors else [])])


# ---------------------------------------------------------------------------------------------------- the command


def version_of(package: str, python: str) -> str:
    """Return the version installed for that Python; "not installed" is an answer for the report."""
    script = f"import importlib.metadata as m; print(m.version({package!r}))"
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
        load_before=os.getloadavg()[0],
        versions={side: version_of(side, python) for side, python in sides.items() if side != "raw"},
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="rivals to run beside sennit; all without a name")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has bench/requirements.txt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workloads", nargs="*", metavar="CASE", choices=[case.name for case in CASES])
    parser.add_argument("--skip-sennit", action="store_true", help="only raw SQLite and the peers")
    parser.add_argument("--dir", help="put the databases on this disk; never on a tmpfs, where fsync is free")
    parser.add_argument("--json", type=Path, help="append the run to this file, one line of JSON")
    parser.add_argument("--table", action="store_true", help="run nothing: print the last run in --json again")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run, print and remember; 1 if sennit or raw SQLite failed somewhere."""
    options = parse(argv)
    if options.table:
        last = options.json.read_bytes().splitlines()[-1]
        print(page(msgspec.json.decode(last, type=Report)))
        return 0
    peers = () if options.peers is None else options.peers or PEERS
    sides = {"raw": sys.executable, "sennit": sys.executable} | dict.fromkeys(peers, options.peer_python)
    if options.skip_sennit:
        del sides["sennit"]
    cases = [case for case in CASES if not options.workloads or case.name in {"fsync", *options.workloads}]
    machine = machine_facts(sides)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    answers = run(sides, cases, rounds=options.rounds, folder=options.dir)
    report = Report(at=at, command=shlex.join(["python", "bench/run.py", *argv]), machine=machine, answers=answers)
    print(page(report))
    if options.json:
        with options.json.open("ab") as history:
            history.write(msgspec.json.encode(report) + b"\n")
    return int(any(answer.error for answer in answers if answer.side in {"sennit", "raw"}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
