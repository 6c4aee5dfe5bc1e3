"""The benchmarks on PostgreSQL: raw psycopg, sennit and four rivals, on one server of our own with fsync on.

    python3 dev.py bench postgres --peers [pgqueuer …] [--rounds 3] [--workloads pg_drain …] [--quick]

By hand it is `python bench/postgres.py` with the same options. Each case of each side is a fresh process and a fresh
database; within a round the sides take turns case by case, as in run.py, whose parts it uses. The peers come with
`--peers` alone (the extra `bench`). docs/reference/benchmarks-postgres.md is made by `--markdown`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec
from cases import POSTGRES_CASES
from report import Report, page
from run import CALM_PATIENCE_S, Calm, end_in_order, machine_facts, parse_common, run
from targets import POSTGRES_TARGETS

from sennit.testing.servers import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES: Final = {
    "raw": "postgres_raw",
    "sennit": "postgres_sennit",
    "pgqueuer": "postgres_peers.pgqueuer_peer",
    "procrastinate": "postgres_peers.procrastinate_peer",
    "dbos": "postgres_peers.dbos_peer",
    "saq": "postgres_peers.saq_peer",
}
PEERS: Final = tuple(MODULES)[2:]
DATABASE: Final = "bench"
CONNECTIONS_MAX: Final = 200

# PostgreSQL's own defaults but for these: statements can be counted (only in databases that ask for it), and no
# process is started amid a case to look for old rows of other databases.
SERVER_SETTINGS: Final = {
    "shared_buffers": "128MB",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "none",
}


@contextmanager
def fresh_database(server: PostgresServer) -> Iterator[None]:
    """Give one question a database of its own, by BENCH_DATABASE_URL. What the one before left is on the disk by then."""
    server.drop_database(DATABASE)
    server.query("CHECKPOINT")
    os.environ["BENCH_DATABASE_URL"] = server.create_database(DATABASE)
    try:
        yield
    finally:
        server.drop_database(DATABASE)


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="rivals to run beside sennit; all without a name")
    parser.add_argument(
        "--peer-python", type=os.path.abspath, default=sys.executable, help="the Python that has the extra `bench`"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--workloads", nargs="*", metavar="CASE", choices=[case.name for case in POSTGRES_CASES], default=[]
    )
    parser.add_argument("--skip", nargs="*", choices=("raw", "sennit"), default=[], help="leave these out")
    return parse_common(parser, argv, files="the server's files")


def measured(options: argparse.Namespace, argv: list[str]) -> Report:
    """Run what the options ask for, on a server that is gone afterwards."""
    peers = () if options.peers is None else options.peers or PEERS
    end_in_order()
    sides = {"raw": sys.executable, "sennit": sys.executable} | dict.fromkeys(peers, options.peer_python)
    for name in options.skip:
        del sides[name]
    cases = [case for case in POSTGRES_CASES if not options.workloads or case.name in {"fsync", *options.workloads}]
    at = datetime.now(UTC).isoformat(timespec="seconds")
    if options.dir:
        tempfile.tempdir = options.dir
    with PostgresServer(fsync=True, connections_max=CONNECTIONS_MAX, settings=SERVER_SETTINGS) as server:
        server.query("CREATE EXTENSION pg_stat_statements")
        (version,) = server.query("SHOW server_version")[0]
        os.environ |= {
            "BENCH_SERVER_URL": server.url,
            "BENCH_SERVER_PID": str(server.pid),
            "BENCH_POSTGRES_PROGRAMS": str(server.programs),
        }
        answers = run(
            sides,
            cases,
            rounds=options.rounds,
            folder=options.dir,
            quick=options.quick,
            calm=Calm(options.calm, patience_s=CALM_PATIENCE_S),
            modules=MODULES,
            prepared=lambda: fresh_database(server),
        )
    machine = msgspec.structs.replace(machine_facts(sides), postgres=f"PostgreSQL {version} with fsync on")
    command = shlex.join(["python", "bench/postgres.py", *argv])
    return Report(at=at, command=command, machine=machine, answers=answers)


def reference_page(report: Report) -> str:
    """Return the page for docs/reference."""
    return f"""# Benchmarks on PostgreSQL

What Sennit costs and gives with its tasks in PostgreSQL, beside plain psycopg and beside four queues that keep theirs
there too. One command makes every figure on this page, on your machine, and writes the page:

```text
python3 dev.py bench postgres --peers --markdown docs/reference/benchmarks-postgres.md
```

What each case does, and how a figure is taken, is in [bench/README.md](../../bench/README.md). Read ratios, not absolute
values: those depend on the disk's fsync and on what else runs. No figure here is written by hand.

{page(report, POSTGRES_CASES, POSTGRES_TARGETS)}
"""


def main(argv: list[str]) -> int:
    """Run, print and remember; 1 if sennit or raw psycopg failed somewhere."""
    options = parse(argv)
    if options.table:
        report = msgspec.json.decode(options.json.read_bytes().splitlines()[-1], type=Report)
    else:
        report = measured(options, argv)
        if options.json:
            with options.json.open("ab") as history:
                history.write(msgspec.json.encode(report) + b"\n")
    print(page(report, POSTGRES_CASES, POSTGRES_TARGETS))
    if options.markdown:
        options.markdown.write_text(reference_page(report), encoding="utf-8")
    return int(any(answer.error for answer in report.answers if answer.side in {"sennit", "raw"}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
