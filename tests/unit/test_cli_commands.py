"""Every command in process: exit codes, texts, and that each --json is JSON Lines with stable keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from sennit import App
from sennit._version import __version__
from sennit.cli.main import COMMANDS, cli, main
from sennit.errors import TaskCancelled, TaskFailed
from sennit.store.migrate import LATEST

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("SENNIT_DB", "SENNIT_JSON", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def ids(here: Path) -> Iterator[dict[str, str]]:
    """A database with one task of each kind of end, and one that is ready."""
    app = App()

    @app.task(name="double")
    async def double(n: int) -> int:
        return 2 * n

    @app.task(name="bad")
    def bad() -> None:
        raise ValueError("it broke\nin two lines")

    @app.task(name="late")
    async def late() -> None: ...

    with app:
        good, failed = double.submit(2), bad.submit()
        cancelled, ready = late.options(delay_s=1000).submit(), late.options(queue="nobody").submit()
        assert good.result() == 4
        with pytest.raises(TaskFailed):
            failed.result()
        cancelled.cancel("not wanted").result()
        with pytest.raises(TaskCancelled):
            cancelled.result()
        yield {
            "good": str(good.id),
            "failed": str(failed.id),
            "cancelled": str(cancelled.id),
            "ready": str(ready.id),
        }


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# ---------------------------------------------------------------- the whole


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "stauts")

    assert (code, out) == (2, "")
    assert err.startswith("error[S101]")
    assert "did you mean `sennit status`?" in err


def test_an_unknown_command_of_a_group_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "tasks", "cancle", "1")

    assert code == 2
    assert "did you mean `sennit tasks cancel`?" in err


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "status", "--colour")

    assert code == 2
    assert "sennit status --help" in err


def test_version_is_an_option_and_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"sennit {__version__}\n", "")
    assert lines(call(capsys, "version", "--json")[1])[0]["sennit"] == __version__


def commands(group: click.Group, ctx: click.Context) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from commands(command, ctx)


def test_every_command_loads_and_has_help_and_the_shared_options() -> None:
    found = dict(commands(cli, click.Context(cli)))

    assert found.keys() >= COMMANDS.keys()
    for name, command in found.items():
        assert command.help, name
        options = {option for parameter in command.params for option in parameter.opts}
        assert options >= {"--db", "--json", "--verbose", "--no-color"}, name


def test_shared_options_may_stand_before_or_after_the_command(
    ids: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    after = call(capsys, "tasks", "ls", "--json")
    before = call(capsys, "--json", "tasks", "ls")
    monkeypatch.setenv("SENNIT_JSON", "1")
    from_environment = call(capsys, "tasks", "ls")

    assert before == after == from_environment
    assert len(lines(after[1])) == len(ids)


def test_colour_is_only_on_a_terminal_and_can_be_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def coloured(*words: str) -> bool:
        return "\x1b[" in CliRunner().invoke(cli, ["doctor", *words], color=True).output

    assert coloured()
    assert not coloured("--no-color")


def test_no_color_in_the_environment_refuses_colour(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    assert "\x1b[" not in call(capsys, "doctor")[1]


# ---------------------------------------------------------------- a database that is not there


@pytest.mark.parametrize(
    "words",
    [
        "status", "verify", "tasks", "tasks ls", "tasks get 1", "tasks logs 1", "tasks logs 1 -f", "tasks wait 1",
        "tasks cancel 1", "tasks retry 1", "inbox", "inbox show 1", "inbox watch", "inbox approve 1", "inbox reject 1",
        "inbox edit 1 --value 1", "inbox respond 1 yes", "threads", "threads show t", "threads state t",
        "threads history t", "threads diff t 1", "threads set t 1", "threads fork t u", "threads forget t --yes",
        "signal paid", "cache invalidate --tag t", "db migrate", "db migrate --dry-run", "db check", "db backup copy.db", "db info",
    ],
)  # fmt: skip
def test_a_command_that_only_looks_makes_no_database(
    here: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    code, out, err = call(capsys, *words.split())

    assert (code, out) == (69, "")
    what, why, fix = err.splitlines()
    assert what == "error[S401] there is no database .sennit/sennit.db"
    assert why.startswith("  why  ")
    assert fix.startswith("  fix  ")
    assert list(here.iterdir()) == []


def test_a_store_in_memory_cannot_be_looked_at(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "status", "--db", "memory://")

    assert code == 2
    assert "memory" in err


# ---------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("words", "schema"),
    [
        ("status", "sennit.status/1"),
        ("verify", "sennit.verify/1"),
        ("tasks ls", "sennit.task/1"),
        ("tasks get {failed}", "sennit.task/1"),
        ("tasks wait {good}", "sennit.task/1"),
        ("tasks cancel {ready}", "sennit.change/1"),
        ("tasks retry {failed}", "sennit.change/1"),
        ("threads set t 1", "sennit.state/1"),
        ("signal paid", "sennit.signal/1"),
        ("cache invalidate --tag t", "sennit.invalidated/1"),
        ("db init", "sennit.db/1"),
        ("db migrate", "sennit.db/1"),
        ("db check", "sennit.check/1"),
        ("db info", "sennit.db/1"),
        ("db backup copy.db", "sennit.backup/1"),
        ("config show", "sennit.setting/1"),
        ("config get slots", "sennit.setting/1"),
        ("doctor", "sennit.doctor/1"),
        ("version", "sennit.version/1"),
    ],
)
def test_json_is_one_object_per_line_that_names_its_schema(
    ids: dict[str, str], capsys: pytest.CaptureFixture[str], words: str, schema: str
) -> None:
    code, out, err = call(capsys, *words.format(**ids).split(), "--json")

    assert (code, err) == (0, "")
    found = lines(out)
    assert found
    assert {line["schema"] for line in found} == {schema}
    for line in found:
        for name, value in line.items():
            assert not name.endswith("_at") or value is None or RFC3339.fullmatch(value)


def test_a_task_in_json_has_its_keys(ids: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Who reads this with jq relies on them: taking one away needs a new schema version."""
    (found,) = lines(call(capsys, "tasks", "get", ids["good"], "--json")[1])

    assert list(found) == [
        "schema", "id", "handler", "queue", "provider", "needs", "pinned_to", "state", "priority", "attempt", "failures",
        "crashes", "thread_id", "key", "parent_id", "waiting_for", "worker_id", "reason", "created_at", "due_at", "started_at",
        "done_at", "error", "position", "asks", "arguments", "result", "waited_s", "attempts",
    ]  # fmt: skip
    assert (found["arguments"], found["result"], found["state"]) == ({"n": 2}, 4, "succeeded")


# ---------------------------------------------------------------- people


def test_status_shows_queues_workers_and_a_balanced_ledger(
    ids: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "status")

    assert code == 0
    assert "workers 1" in out
    assert re.search(r"^nobody +0 +0 +1 +0 +0 +0$", out, re.MULTILINE)
    assert "submitted 4 = succeeded 1 + failed 1 + cancelled 1 + live 1   ✓ nothing missing" in out


def test_verify_prints_the_ledger(ids: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "verify")

    assert code == 0
    assert "submitted 4 = " in out
    assert "✓ every promise is kept" in out


def test_ls_filters(ids: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    def listed(*words: str) -> list[str]:
        return [str(line["id"]) for line in lines(call(capsys, "tasks", "ls", "--json", *words)[1])]

    assert (
        listed("--state", "failed", "--state", "cancelled") == sorted([ids["failed"], ids["cancelled"]], key=int)[::-1]
    )
    assert listed("--queue", "nobody") == [ids["ready"]]
    assert listed("--handler", "double") == [ids["good"]]
    assert len(listed("--limit", "2")) == 2


def test_ls_shows_one_line_per_task(ids: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "tasks")

    assert len(out.splitlines()) == 1 + len(ids)
    assert "ValueError: it broke" in out


def test_get_shows_arguments_result_and_traceback(ids: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    good, failed = (call(capsys, "tasks", "get", ids[name])[1] for name in ("good", "failed"))

    assert 'arguments    {"n":2}\nresult       4\n' in good
    assert "Traceback" in failed


def test_wait_returns_the_worst_end(ids: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "tasks", "wait", ids["good"])[0] == 0
    assert call(capsys, "tasks", "wait", ids["good"], ids["cancelled"])[0] == 6
    assert call(capsys, "tasks", "wait", ids["good"], ids["cancelled"], ids["failed"])[0] == 1


def test_wait_gives_up_after_its_time_out(ids: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "tasks", "wait", ids["ready"], "--timeout-s", "0.05")

    assert code == 124
    assert "error[S304] 1 of 1 tasks have not ended in time" in err


def test_cancel_and_retry_exit_4_when_there_was_nothing_to_change(
    ids: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, "tasks", "cancel", ids["ready"])[:2] == (0, f"{ids['ready']} cancelled\n")
    assert call(capsys, "tasks", "cancel", ids["good"])[:2] == (4, f"{ids['good']} unchanged: it is succeeded\n")
    assert call(capsys, "tasks", "retry", ids["ready"])[:2] == (0, f"{ids['ready']} ready\n")
    assert call(capsys, "tasks", "retry", ids["good"])[0] == 4


@pytest.mark.parametrize("words", ["get 99", "logs 99", "logs 99 -f", "wait 99", "cancel 99", "retry 99"])
def test_an_unknown_task_exits_3(ids: dict[str, str], capsys: pytest.CaptureFixture[str], words: str) -> None:
    code, _, err = call(capsys, "tasks", *words.split())

    assert code == 3
    assert "error[S301] no task 99 in this store" in err


# ---------------------------------------------------------------- the file


def test_init_makes_the_database_and_is_harmless_later(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = call(capsys, "db", "init"), call(capsys, "db", "init")

    assert first[:2] == (0, f"created .sennit/sennit.db, schema {LATEST}\n")
    assert second[:2] == (0, f"there already: .sennit/sennit.db, schema {LATEST}\n")


def test_a_dry_run_prints_the_sql_and_changes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = here / "empty.db"
    empty.touch()

    code, out, _ = call(capsys, "db", "migrate", "--dry-run", "--db", "sqlite:///empty.db")

    assert code == 0
    assert "CREATE TABLE sennit_task" in out
    assert empty.stat().st_size == 0


def test_migrate_brings_an_empty_file_to_the_schema(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "empty.db").touch()

    assert call(capsys, "db", "migrate", "--db", "sqlite:///empty.db")[1] == f"empty.db: schema 0 → {LATEST}\n"
    assert "nothing to do" in call(capsys, "db", "migrate", "--db", "sqlite:///empty.db", "--dry-run")[1]


def test_a_backup_is_a_sound_database_and_never_overwrites(
    ids: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, "db", "backup", "copy.db")[0] == 0
    assert call(capsys, "verify", "--db", "sqlite:///copy.db")[0] == 0
    code, _, err = call(capsys, "db", "backup", "copy.db")

    assert code == 69
    assert "copy.db exists already" in err


# ---------------------------------------------------------------- settings, machine, bench


def test_config_shows_where_a_value_comes_from(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "sennit.toml").write_text("slots = 7\n", encoding="utf-8")
    monkeypatch.setenv("SENNIT_DRAIN_S", "3")

    origins = {line["name"]: line["origin"] for line in lines(call(capsys, "config", "--json")[1])}

    assert origins["slots"] == str(here / "sennit.toml")
    assert origins["drain_s"] == "environment"
    assert origins["lease_s"] == "default"
    assert call(capsys, "config", "get", "slots")[1] == "7\n"
    assert call(capsys, "config", "path")[1] == f"{here / 'sennit.toml'}\n"
    assert str(here / "sennit.toml") in call(capsys, "config", "show", "--origin")[1]


def test_a_wrong_setting_exits_78_with_a_suggestion(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "sennit.toml").write_text("slot = 7\n", encoding="utf-8")

    code, _, err = call(capsys, "config", "show")

    assert code == 78
    assert "did you mean 'slots'?" in err
    assert call(capsys, "doctor")[0] == 1


def test_an_unknown_setting_names_the_nearest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "config", "get", "drain")

    assert code == 78
    assert "did you mean 'drain_s'?" in err


def test_doctor_finds_nothing_wrong_here(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(call(capsys, "doctor", "--json")[1])

    assert {line["name"] for line in found} >= {
        "python",
        "sqlite",
        "cores",
        "pidfd",
        "file system",
        "file locks",
        "sockets",
    }
    assert [line for line in found if line["level"] == "problem"] == []
    assert list(here.iterdir()) == []


def test_doctor_exits_1_for_a_database_that_cannot_be(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "doctor", "--db", "mysql://nowhere")

    assert code == 1
    assert "✕ database" in out


def test_bench_measures_every_workload_beside_raw_sqlite(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "bench", "--scale", "0.01", "--json")

    assert code == 0
    found = lines(out)
    assert {line["workload"].split()[0].strip(",") for line in found} == {
        "latency", "chain", "fan-in", "step", "throughput", "bulk",
    }  # fmt: skip
    assert all(line["value"] > 0 and line["raw"] > 0 for line in found)
    assert list(here.iterdir()) == []


def test_bench_prints_a_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "bench", "--scale", "0.01", "--durability", "normal")

    assert code == 0
    assert "raw sqlite" in out.splitlines()[0]


# ---------------------------------------------------------------- bugs


def test_a_bug_keeps_its_traceback_in_a_file_and_prints_the_place(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(here))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("sennit.cli.status.existing", None)

    code, _, err = call(capsys, "status")

    assert code == 1
    (kept,) = here.glob("sennit-error-*.txt")
    assert err.startswith("error[S000] unexpected TypeError")
    assert str(kept) in err
    assert "Traceback" in kept.read_text(encoding="utf-8")
    assert "Traceback" not in err
