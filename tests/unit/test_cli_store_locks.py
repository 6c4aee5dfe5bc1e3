"""`sennit locks` on the locks of a store: what is listed, and how one is taken away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sennit import App
from sennit.errors import LockLost, StoreUnavailable
from tests.unit.command_line import Run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.chdir(tmp_path)
    for name in ("SENNIT_DB", "SENNIT_JSON", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    app = App()
    app.ledger().result()  # makes the database
    yield app
    app.close()


def test_ls_shows_who_holds_locks_of_the_store(app: App, run: Run) -> None:
    with app.lock("deploy", purpose="release 9") as lease, app.semaphore("gpu", 2):
        text = run("locks", "ls")
        deploy, gpu = run.json("locks", "ls")

    assert "(release 9)" in text
    assert "1 of 2" in text
    assert (deploy["name"], deploy["token"], deploy["waiting"]) == ("deploy", lease.token, [])
    (holder,) = gpu["holders"]
    assert (holder["shared"], holder["n_max"], holder["until_at"] > holder["since_at"]) == (True, 2, True)
    assert run("locks", "ls") == "none is held: 0 locks in .sennit\n"


def test_release_is_refused_without_force(app: App, run: Run) -> None:
    with app.lock("deploy"):
        run("locks", "release", "deploy")
        assert (run.code, "by who holds it" in run.err) == (2, True)

        assert len(run.json("locks", "ls")) == 1


def test_release_by_force_takes_it_away(app: App, run: Run) -> None:
    lease = app.lock("deploy").acquire().result()

    (released,) = run.json("locks", "release", "deploy", "--force")

    assert (released["schema"], released["name"], released["holders"]) == ("sennit.lock_release/1", "deploy", 1)
    with pytest.raises(LockLost):
        lease.extend().result()
    assert run("locks", "release", "deploy", "--force") == "deploy: taken from 0 holders\n"


def test_release_of_a_lock_that_never_was_says_so(app: App, run: Run) -> None:
    run("locks", "release", "deploy", "--force")

    assert (run.code, "was ever held" in run.err) == (2, True)


def test_a_store_that_was_named_must_be_there(app: App, run: Run) -> None:
    run("locks", "ls", "--db", "sqlite:///nowhere.db")

    assert (run.code, "there is no database" in run.err) == (StoreUnavailable.exit_code, True)


def test_every_key_of_the_json_is_in_the_reference_of_locks(app: App, run: Run) -> None:
    reference = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
    rows = {row.split("`")[1]: row for row in reference.read_text().splitlines() if row.startswith("| `sennit.")}
    lease = app.lock("deploy").acquire().result()
    (held,) = run.json("locks", "ls")
    (released,) = run.json("locks", "release", lease.name, "--force")

    keys = [(held["schema"], key) for key in (*held, *held["holders"][0])]
    keys += [(released["schema"], key) for key in released]
    assert [(schema, key) for schema, key in keys if key != "schema" and f"`{key}`" not in rows[schema]] == []
