"""The demo as a stranger runs it: real worker processes, a real kill -9, and a report that must be true."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import msgspec
import psutil
import pytest

from sennit import App
from sennit.cli.demo import fleet, journal
from sennit.cli.demo.analysis import analyse_file
from sennit.cli.demo.audit import audited
from sennit.cli.demo.journal import Entry
from sennit.cli.demo.plan import Plan, PlannedFile, plan
from sennit.cli.demo.records import FunctionFacts, Outcome
from sennit.cli.demo.run import Result
from sennit.cli.demo.stock import Stock, take_stock
from sennit.testing.provider import FakeProvider
from tests.examples.demo_runs import LINE, demo, shop, started

MODEL_LINE = re.compile(
    r"^model: highest concurrency \d+( \(found by \d+ refused calls?\))?, 1 pause of 0\.\d s, \d+ requests? in it, "
    r"0 attempts lost, 0\.0\d USD \(made-up prices\)$",
    re.MULTILINE,
)

# Each agent reads four files. One of them was killed with its worker after three, and has read the fourth.
AGENTS_LINE = re.compile(
    r"^agents: 3 done, 12 tool uses in 4 runs, 1 went on with its session after a kill, 0 tool uses repeated$",
    re.MULTILINE,
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return shop(tmp_path)


def analyse_nothing() -> None: ...


def most_complex_of(root: Path) -> tuple[str, FunctionFacts]:
    found = [
        (file.path, function)
        for file in plan(root, files_max=1000).files
        for function in analyse_file(Path(file.file), path=file.path).functions
    ]
    return min(found, key=lambda pair: (-pair[1].complexity, pair[0], pair[1].line))


def first_row_after(heading: str, markdown: str) -> list[str]:
    table = markdown.partition(f"## {heading}\n")[2].strip().splitlines()
    return [cell.strip(" `") for cell in table[2].strip("| ").split(" | ")]


# ---------------------------------------------------------------- a whole run


def test_a_small_tree_is_read_although_a_worker_is_killed(tree: Path, tmp_path: Path) -> None:
    done = demo(tree, "--fast", "--out", tmp_path / "out")

    assert done.returncode == 0, done.stderr
    line = LINE.fullmatch(done.stdout)
    assert line is not None, done.stdout
    assert int(line["tasks"]) == 1 + 1 + 15 * 2 + 3 * 2 + 1  # plan, approve, 15 files, 3 packages, report
    assert (line["kills"], line["asked"], line["outcome"]) == ("1", "1 human", "report")
    assert int(line["rescued"]) >= 1
    assert (line["retries"], line["lost"], line["duplicated"]) == ("0", "0", "0")
    assert re.search(r"first result after [\d.]+ s: ", done.stderr)
    assert re.search(r"kill -9 \d+ after \d+ of 39 tasks: it held [1-9]\d*, an agent among them", done.stderr)
    assert MODEL_LINE.search(done.stderr), done.stderr
    assert line["agents"] == "3"
    assert AGENTS_LINE.search(done.stderr), done.stderr


def test_the_report_of_a_small_tree_is_true(tree: Path, tmp_path: Path) -> None:
    demo(tree, "--fast", "--out", tmp_path / "out")

    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert first_row_after("Most complex functions", markdown) == ["tangled", "shop/tangled.py:1", "14", "28"]
    assert re.search(r"lines of code: `shop/cart/copied\.py:2-\d+`, `shop/till/copied\.py:2-\d+`", markdown)
    assert markdown.count("killed with -9 at") == 1
    assert page.count("kill -9 at") == 1
    assert page.count('class="k-audit o-killed"') == 1
    assert page.count('class="k-audit o-succeeded"') == 3
    assert re.search(r"^\| `shop` \| \d \| Read 4 of 5 files of `shop`: .* look at `tangled` ", markdown, re.MULTILINE)
    assert "12 tool uses in 4 runs, 1 went on with its session after a kill, 0 tool uses repeated" in page
    assert "Thread `package:shop/cart`: version 6 · 5 files reviewed" in markdown  # five reviews and the summary
    assert "most complex `tangled` (shop/tangled.py:1, 14)" in markdown
    assert "Published: nobody answered within 2 s, which counts as yes" in markdown
    assert "<span>a person</span>" in page
    assert re.search(
        r"Provider model: highest concurrency \d+.*, 0 attempts lost, 0\.0\d USD \(made-up prices\)", markdown
    )
    assert re.search(r"^\| dependencies \| \d+ \|", markdown, re.MULTILINE)


def test_the_report_of_an_installed_package_is_true(tmp_path: Path) -> None:
    root = Path(click.__file__).parent
    path, knot = most_complex_of(root)

    done = demo(root, "--fast", "--json", "--out", tmp_path)

    facts = msgspec.json.decode(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (facts["kills"], facts["lost"], facts["duplicated"], facts["sound"]) == (1, 0, 0, True)
    assert facts["tasks"] == facts["succeeded"] == len(fleet_of(plan(root, files_max=1000)))
    assert (facts["asked"], facts["published"], facts["approval"]["state"]) == (1, True, "expired")
    assert facts["retries"] == 0
    assert_the_model_was_spared(facts)
    assert facts["agents"] == {"agents": 1, "tools": 4, "runs": 2, "resumed": 1, "repeated": 0}
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    row = first_row_after("Most complex functions", markdown)
    assert row == [knot.name, f"{path}:{knot.line}", str(knot.complexity), str(knot.lines)]
    source = (root.parent / path).read_text(encoding="utf-8").splitlines()
    assert f"def {knot.name.rpartition('.')[2]}(" in source[knot.line - 1]


def assert_the_model_was_spared(facts: dict[str, Any]) -> None:
    """Its ceiling of 12 was found and kept, its quota ended once, and both are nobody's failure."""
    use = facts["model"]
    assert 4 <= use["highest"] <= 12
    assert len(use["pauses"]) == 1
    assert use["attempts_lost"] == 0
    assert use["calls"] >= use["throttled"] > use["too_many"]
    assert use["cost_usd"] > 0
    assert facts["waited_s"]["pause"] > 0


def test_the_users_own_model_is_kept_to_its_limit_by_the_same_provider(tree: Path, tmp_path: Path) -> None:
    with FakeProvider(max_concurrency=2, latency=0.02, models=("llama",)) as theirs:
        environ = {"OPENAI_BASE_URL": f"{theirs.url}/v1", "OPENAI_MODEL": "llama"}
        done = demo(tree, "--fast", "--json", "--out", tmp_path, **environ)
        seen = theirs.statistics()

    facts = msgspec.json.decode(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (facts["retries"], facts["failed"], facts["lost"], facts["duplicated"]) == (0, 0, 0, 0)
    assert (seen.max_concurrency, seen.pauses) == (2, ())
    assert 0 < facts["rate_limited"] <= seen.refused["burst"]
    assert (facts["model"]["highest"], facts["model"]["pauses"], facts["model"]["cost_usd"]) == (None, [], 0.0)
    assert re.search(r"^model: \d+ calls, \d+ answered 429, [\d]+ at once allowed at the end, 0 attempts lost$",
                     done.stderr, re.MULTILINE)  # fmt: skip
    assert "quota" not in done.stderr


def fleet_of(tree: Plan) -> list[str]:
    return [
        "plan",
        "approve",
        *(f"{kind} {file.path}" for file in tree.files for kind in ("a", "r")),
        *map(str, tree.packages),
        *(f"audit {package.name}" for package in audited(tree)),
        "report",
    ]


# ---------------------------------------------------------------- bad days


def test_an_endpoint_that_is_down_fails_the_reviews_and_nothing_else(tree: Path, tmp_path: Path) -> None:
    done = demo(tree, "--fast", "--json", "--out", tmp_path, OPENAI_BASE_URL="http://127.0.0.1:9/v1")

    facts = msgspec.json.decode(done.stdout)
    assert done.returncode == 1
    assert (facts["failed"], facts["lost"], facts["duplicated"], facts["problems"]) == (15, 0, 0, [])
    assert facts["tasks"] == facts["succeeded"] + facts["failed"]
    assert facts["retries"] == 15 * 2
    assert "no HTTP answer from http://127.0.0.1:9/v1" in done.stderr
    assert "check OPENAI_BASE_URL" in done.stderr
    assert facts["published"] is True
    assert "shop/tangled.py:1" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "says"), [("nowhere", "no such file or folder"), ("empty", "no Python file")])
def test_a_path_without_code_is_refused_before_anything_starts(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    done = demo(tmp_path / name, "--out", tmp_path / "out")

    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_database_that_holds_tasks_is_refused(tree: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'used.db'}"
    app = App(url)
    app.task(analyse_nothing).submit()
    app.close()

    done = demo(tree, "--db", url, "--out", tmp_path / "out")

    assert done.returncode == 2
    assert "holds 1 tasks already" in done.stderr


def test_a_file_with_an_undecodable_name_is_left_out_and_named(tree: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9.py")).write_text("x = 1\n", encoding="utf-8")

    done = demo(tree, "--fast", "--no-kill", "--out", tmp_path / "out")

    assert done.returncode == 0, done.stderr
    assert "left out, it cannot be read:" in done.stderr


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    report = fleet.analyse(PlannedFile(str(tmp_path / "gone.py"), "shop/gone.py"), "")

    assert [(finding.kind, finding.severity) for finding in report.findings] == [("unreadable", "error")]


def test_a_worker_that_somebody_else_kills_is_one_more_kill(tree: Path, tmp_path: Path) -> None:
    with started(tree, tmp_path, "--yes") as (running, workers):
        workers[0].kill()
        out, _ = running.communicate()

    assert running.returncode == 0
    line = LINE.fullmatch(out)
    assert line is not None
    assert (line["kills"], line["lost"], line["duplicated"]) == ("1", "0", "0")


def test_the_demo_says_so_when_its_last_worker_is_killed(tree: Path, tmp_path: Path) -> None:
    with started(tree, tmp_path, "--workers", "1") as (running, workers):
        workers[0].kill()
        _, err = running.communicate()

    assert running.returncode == 1
    assert "ended with exit code -9" in err


def test_ctrl_c_stops_the_workers_and_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    with started(tree, tmp_path) as (running, workers):
        running.send_signal(signal.SIGINT)
        running.communicate()

    _, alive = psutil.wait_procs(workers, timeout=10)
    assert len(workers) == 3
    assert alive == []
    assert running.returncode == 130
    assert list((tmp_path / "temp").iterdir()) == []


def test_no_worker_outlives_a_director_that_was_killed(tree: Path, tmp_path: Path) -> None:
    with started(tree, tmp_path) as (running, workers):
        running.kill()

    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


# ---------------------------------------------------------------- the stocktaking


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tree, database and journal of a run that went well."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "pack").mkdir()
    for n in range(4):
        (folder / "pack" / f"m{n}.py").write_text(f"def f{n}():\n    return {n}\n", encoding="utf-8")
    done = demo(folder / "pack", "--fast", "--db", f"sqlite:///{folder / 'demo.db'}", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    return folder


def stock_of(folder: Path) -> Stock:
    """Take stock of the run in `folder`."""
    with closing(App(f"sqlite:///{folder / 'demo.db'}")) as app:
        tree = plan(folder / "pack", files_max=100)
        return asyncio.run(
            take_stock(
                app.store,
                tree,
                journal.read(folder / "demo.db.demo.jsonl"),
                seconds=1.0,
                agents=folder / "demo.db.demo.agents",
            )
        )


def sql(statement: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with closing(sqlite3.connect(folder / "demo.db", isolation_level=None)) as connection:
            assert connection.execute(statement).rowcount > 0

    return damage


def noted(*, attempt: int, outcome: Outcome) -> Callable[[Path], None]:
    """Add what a body would write that ran a task once more."""

    def damage(folder: Path) -> None:
        path = folder / "demo.db.demo.jsonl"
        last = journal.read(path)[-1]
        journal.append(path, Entry(last.task_id, last.attempt + attempt, 1, last.at_us, last.kind, last.label, outcome))

    return damage


def without_a_line(folder: Path) -> None:
    path = folder / "demo.db.demo.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if b"summarise" not in line))


def without_a_log(folder: Path) -> None:
    (folder / "demo.db.demo.agents" / "log.jsonl").unlink()


def without_a_file(folder: Path) -> None:
    (folder / "pack" / "m9.py").write_text("x = 1\n", encoding="utf-8")


def sql_state(change: str) -> Callable[[Path], None]:
    return sql(f"UPDATE sennit_state SET data = CAST({change} AS BLOB) WHERE data IS NOT NULL")


REVIEW = "(SELECT min(id) FROM sennit_task WHERE handler LIKE '%.review')"
DAMAGES = {
    "a success is counted twice": (
        sql("UPDATE sennit_ledger SET n = n + 1 WHERE name = 'succeeded'"),
        "success beyond",
    ),
    "a submit is counted twice": (
        sql("UPDATE sennit_ledger SET n = n + 1 WHERE name = 'submitted'"),
        "does not balance",
    ),
    "a row is gone": (sql(f"DELETE FROM sennit_task WHERE id = {REVIEW}"), "is not in the store"),
    "an end has no time": (sql(f"UPDATE sennit_task SET done_us = NULL WHERE id = {REVIEW}"), "done_us none"),
    "a task is of nobody's plan": (sql(f"UPDATE sennit_task SET id = 999999 WHERE id = {REVIEW}"), "was never planned"),
    "a file never came to be a task": (without_a_file, "lost: analyse pack/m9.py"),
    "a body ran after the end": (noted(attempt=1, outcome="succeeded"), "ran again after its result was accepted"),
    "an update of a thread is lost": (
        sql_state("""replace(data, '"pack/m2.py"', '"pack/m1.py"')"""),
        "lost: thread package:pack does not count pack/m2.py",
    ),
    "an update of a thread is done twice": (
        sql_state("""replace(data, '"pack/m2.py"', '"pack/m2.py","pack/m2.py"')"""),
        "duplicated: thread package:pack counts pack/m2.py 2 times",
    ),
    "a thread has miscounted": (
        sql_state("""replace(data, '"missing-docstring":', '"missing-docstring":1')"""),
        "thread package:pack counts the findings",
    ),
    "a thread was written by a stranger": (
        sql(
            "INSERT INTO sennit_state SELECT thread_id, name, version + 1, data, at_us, NULL, NULL "
            "FROM sennit_state ORDER BY version DESC LIMIT 1"
        ),
        "thread package:pack is at version 6, and 5 attempts changed it",
    ),
    "a question is gone": (sql("DELETE FROM sennit_ask"), "lost: the question of task"),
    "a question has another answer": (
        sql("""UPDATE sennit_ask SET answer = CAST('{"state":"denied"}' AS BLOB), state = 'denied'"""),
        "was answered no, and the report has heard yes",
    ),
    "a question is asked twice": (
        sql(
            "INSERT INTO sennit_ask (task_id, key, kind, name, event_key, spec, assignee, state, created_us, answer) "
            "SELECT task_id, key || 'x', kind, name, event_key, spec, assignee, state, created_us, answer FROM sennit_ask"
        ),
        "has asked 2 times",
    ),
    "an audit comes from no program": (without_a_log, "and no program has said what it says"),
    "a result comes from no body": (without_a_line, "and no body says so"),
}


def test_a_good_run_is_sound(a_run: Path) -> None:
    stock = stock_of(a_run)

    assert stock.problems == ()
    assert stock.sound
    assert stock.ledger.submitted == stock.ledger.succeeded == 1 + 1 + 4 * 2 + 1 + 1 + 1


@pytest.mark.parametrize("what", DAMAGES)
def test_a_run_that_does_not_balance_exits_1_and_says_why(what: str, a_run: Path, tmp_path: Path) -> None:
    damage, says = DAMAGES[what]
    shutil.copytree(a_run, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)

    stock = stock_of(tmp_path)
    result = Result(stock=stock, kills=(), first_result_s=0.1, report=tmp_path / "report.html")

    assert any(says in problem for problem in stock.problems), stock.problems
    assert result.exit_code == 1
    assert result.facts()["sound"] is False
