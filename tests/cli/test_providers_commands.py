"""`sennit providers` against the calls and tasks of a running app: what it shows, what it changes, and how it fails."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sennit import App, Handle
from sennit.cli.provider_view import HEAD
from sennit.cli.providers import Duration
from sennit.model.provider import ProviderView
from sennit.submit.limits import Provider
from tests.unit.command_line import Run

WAIT_S = 30.0


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.chdir(tmp_path)
    for name in ("SENNIT_DB", "SENNIT_JSON", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    app = App(durability="normal", slots=20)
    with app:
        yield app


@pytest.fixture
def claude(app: App) -> Provider:
    return app.provider("claude", parallel=2, rpm=1000, models={"opus": {"parallel": 1}}, prices={"m": (3.0, 15.0)})


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


@pytest.fixture
def work(app: App, claude: Provider, gate: threading.Event) -> Callable[[int], Handle[int]]:
    """Tasks whose calls go on once the gate is open."""

    @app.task(name="work", provider=claude)
    def work(n: int) -> int:
        with claude.slot() as call:
            gate.wait(WAIT_S)
            call.used(input_tokens=1000, output_tokens=100, model="m")
            return n

    return work.submit


def seen(provider: Provider, fact: Callable[[ProviderView], object]) -> ProviderView:
    """Wait until it is so; each look is an answer of the store."""
    while not fact(view := provider.view().result()[0]):
        pass
    return view


# ---------------------------------------------------------------- looking


def test_a_store_without_providers_says_how_to_declare_one(app: App, run: Run) -> None:
    app.ledger().result()

    assert "app.provider" in run("providers")
    assert run.json("providers", "ls") == []


def test_the_list_says_what_is_in_use_what_waits_and_why_and_status_says_so_too(
    run: Run, claude: Provider, gate: threading.Event, work: Callable[[int], Handle[int]]
) -> None:
    handles = [work(n) for n in range(5)]
    seen(claude, lambda v: (v.in_use, v.ready) == (2, 3))

    head, line = run("providers").splitlines()
    assert head.split() == [*HEAD[0:2], "in", "use", *HEAD[3:]]
    assert re.split(r" {2,}", line) == ["claude", "2 of 2", "2", "3", "2", "0", "0", "0", "$0.00", "full"]
    (shown,) = run.json("providers", "ls")
    assert (shown["state"], shown["reason"], shown["in_use"], shown["waiting_tasks"]) == ("full", "limit", 2, 3)
    assert "provider claude  2 of 2 in use, 3 waiting  full" in run("status")
    assert "waiting  3 limit claude" in run("status")
    (status,) = run.json("status")
    assert status["held_back"] == {"limit claude": 3}
    assert [view["name"] for view in status["providers"]] == ["claude"]
    assert "waiting: claude: full" in run("tasks", "ls", "--state", "ready")
    assert "waits for    claude: full" in run("tasks", "get", str(handles[4].id))

    gate.set()
    assert [handle.result(WAIT_S) for handle in handles] == list(range(5))
    seen(claude, lambda v: not v.in_use)
    assert "5 let through, 5 succeeded, 0 throttled (429), 0 failed" in run("providers", "get", "claude")
    (shown,) = run.json("providers", "get", "claude")
    assert (shown["input_tokens"], shown["output_tokens"], shown["cost_usd"]) == (5000, 500, 0.0225)


def test_how_long_a_task_has_waited_and_for_what_is_in_tasks_get_and_in_status(
    app: App, run: Run, claude: Provider, gate: threading.Event, work: Callable[[int], Handle[int]]
) -> None:
    claude.pause(60).result()
    handle = work(1)
    seen(claude, lambda v: v.ready == 1)
    began_us = app.store.now_us()
    while app.store.now_us() - began_us < 100_000:
        claude.view().result()
    claude.reset().result()
    gate.set()
    handle.result(WAIT_S)

    (task,) = run.json("tasks", "get", str(handle.id))
    assert task["waited_s"]["pause"] >= 0.1
    assert re.search(
        r"^has waited   (queue [\dms.]+, )?pause [\dms.]+$", run("tasks", "get", str(handle.id)), re.MULTILINE
    )
    (status,) = run.json("status")
    assert status["waited_s"]["pause"] == task["waited_s"]["pause"]
    assert status["waited_tasks"] == 1
    assert re.search(r"^waited   .*pause [\dms.]+.*\(the last 1 task together\)$", run("status"), re.MULTILINE)


def test_a_name_that_somebody_else_has_given_cannot_move_the_cursor(app: App, run: Run) -> None:
    app.provider("evil\x1b[2J").view().result()

    assert "\x1b" not in run("providers")
    assert "\x1b" not in run("providers", "get", "evil\x1b[2J")
    assert "\x1b" not in run("status")


def test_a_long_list_says_that_it_goes_on(app: App, run: Run) -> None:
    for n in range(5):
        app.provider(f"p{n}")
    app.limits.providers().result()

    assert len(run("providers", "ls", "--limit", "2").splitlines()) == 3
    assert "2 of 5; more with --limit" in run.err


# ---------------------------------------------------------------- changing


def test_set_changes_what_it_names_and_holds_for_what_waits_already(
    run: Run, claude: Provider, gate: threading.Event, work: Callable[[int], Handle[int]]
) -> None:
    handles = [work(n) for n in range(5)]
    seen(claude, lambda v: (v.in_use, v.ready) == (2, 3))

    (shown,) = run.json("providers", "set", "claude", "--parallel", "5", "--model", "opus:rpm=7,tpm=40000",
                        "--strategy", "fixed", "--fallback", "other", "--breaker", "failures=3,open_s=1.5")  # fmt: skip

    assert (shown["parallel"], shown["rpm"], shown["strategy"], shown["fallbacks"]) == (5, 1000, "fixed", ["other"])
    assert (shown["models"]["opus"]["rpm"], shown["models"]["opus"]["parallel"]) == (7, 0)
    assert (shown["breaker_spec"]["failures"], shown["breaker_spec"]["open_s"]) == (3, 1.5)
    seen(claude, lambda v: v.in_use == 5)
    (shown,) = run.json("providers", "set", "claude", "--model", "opus:", "--no-fallbacks", "--no-breaker")
    assert (shown["models"], shown["fallbacks"], shown["breaker_spec"], shown["rpm"]) == ({}, [], None, 1000)
    gate.set()
    for handle in handles:
        handle.result(WAIT_S)


def test_set_declares_an_unknown_one_only_when_it_is_told_so(app: App, run: Run) -> None:
    app.ledger().result()

    run("providers", "set", "ollama", "--singleton")
    assert (run.code, "no provider 'ollama'" in run.err) == (3, True)
    (shown,) = run.json("providers", "set", "ollama", "--new", "--singleton")
    assert (run.code, shown["parallel"], shown["singleton"], shown["limit"]) == (0, 1, True, 1)
    assert run("providers", "forget", "ollama") == "ollama is forgotten\n"
    run("providers", "forget", "ollama")
    assert run.code == 3


def test_one_that_is_in_use_is_not_forgotten(run: Run, claude: Provider) -> None:
    with claude.slot():
        run("providers", "forget", "claude")
        assert (run.code, "1 call under way" in run.err) == (4, True)

    seen(claude, lambda v: not v.in_use)
    run("providers", "forget", "claude")
    assert run.code == 0


def test_pause_trip_and_reset_say_what_it_is_now(run: Run, claude: Provider) -> None:
    claude.view().result()

    assert re.fullmatch(
        r"claude is paused until (\d\d:\d\d:\d\d|[\d-]+ \d\d:\d\d) \(window\); 0 calls under way\n",
        run("providers", "pause", "claude", "--for", "1h30m"),
    )
    (shown,) = run.json("providers", "get", "claude")
    assert (shown["state"], shown["limit"]) == ("paused", 0)
    assert run("providers", "reset", "claude") == "claude is open; 0 calls under way\n"
    assert run("providers", "trip", "claude") == "claude is isolated until it is reset; 0 calls under way\n"
    (shown,) = run.json("providers", "reset", "claude")
    assert (shown["state"], shown["breaker"], shown["limit"]) == ("open", "closed", 2)
    for how in (["trip"], ["reset"], ["pause", "--for", "5"]):
        run("providers", how[0], "nobody", *how[1:])
        assert run.code == 3


def test_a_breaker_that_has_opened_is_shown_with_the_time_it_opens_again(app: App, run: Run) -> None:
    weak = app.provider("weak", parallel=2)
    for _ in range(5):
        with pytest.raises(TimeoutError), weak.slot():
            raise TimeoutError

    assert "breaker open until" in run("providers")
    (shown,) = run.json("providers")
    assert (shown["state"], shown["breaker"], shown["failed"]) == ("breaker_open", "open", 5)
    assert shown["closed_until_at"] is not None


# ---------------------------------------------------------------- trying


def test_a_try_takes_one_permit_and_gives_it_back_unreported(run: Run, claude: Provider) -> None:
    claude.view().result()

    assert re.match(r"claude/opus let a call through .*at \d\d:\d\d:\d\d\n", run("providers", "test", "claude/opus"))
    (shown,) = run.json("providers", "test", "claude", "--tokens", "100")
    assert (shown["provider"], shown["fallback_for"], shown["is_probe"]) == ("claude", "", False)
    view = seen(claude, lambda v: not v.in_use)
    assert (view.granted, view.succeeded, view.failed) == (2, 0, 0)


def test_a_try_that_takes_too_long_says_why_and_leaves_nothing_in_line(run: Run, claude: Provider) -> None:
    with claude.slot(), claude.slot():
        run("providers", "test", "claude", "--timeout-s", "0.05")
        assert run.code == 124
        assert "no permit for 'claude' within 0.05 s" in run.err
        assert "claude is full; 2 calls under way, 0 calls and 0 tasks wait" in run.err
        assert claude.view().result()[0].waiting == 0


def test_a_try_of_an_unknown_one_does_not_declare_it(app: App, run: Run) -> None:
    app.ledger().result()

    run("providers", "test", "typo")

    assert run.code == 3
    assert run.json("providers") == []


# ---------------------------------------------------------------- bad words


@pytest.mark.parametrize(
    "words",
    [
        ["set", "claude", "--parallel", "0"],
        ["set", "claude", "--parallel", "99999999999999999999"],
        ["set", "claude", "--rpm", "-1"],
        ["set", "claude", "--model", "opus"],
        ["set", "claude", "--model", "opus:speed=1"],
        ["set", "claude", "--model", "opus:rpm=-1"],
        ["set", "claude", "--breaker", "failures=nan"],
        ["set", "claude", "--breaker", "failures=3", "--no-breaker"],
        ["set", "claude", "--fallback", "other", "--no-fallbacks"],
        ["set", "claude", "--fallback", "claude"],
        ["set", "a/b", "--new"],
        ["set", "", "--new"],
        ["set", "x" * 201, "--new"],
        ["get", "a/b"],
        ["pause", "claude"],
        ["pause", "claude", "--for", "soon"],
        ["pause", "claude", "--for", "-5"],
        ["pause", "claude", "--for", "1e9"],
        ["pause", "claude", "--for", "9999d"],
        ["test", "claude", "--timeout-s", "0"],
        ["test", "/opus"],
        ["budget", "planet", "--usd", "1"],
        ["budget", "fleet", "key", "--usd", "1"],
        ["budget", "provider", "--usd", "1"],
        ["budget", "task", "seven", "--usd", "1"],
        ["budget", "--usd", "1"],
        ["budget", "fleet", "--usd", "nan"],
        ["budget", "fleet", "--usd", "-1"],
        ["budget", "fleet", "--tokens", "99999999999999999999"],
        ["budget", "fleet", "--ask"],
        ["budget", "fleet", "--usd", "1", "--lift"],
        ["nothing"],
    ],
    ids=" ".join,
)
def test_words_that_make_no_sense_are_refused_with_exit_2_and_change_nothing(
    run: Run, claude: Provider, words: list[str]
) -> None:
    before = claude.view().result()

    run("providers", *words)

    assert (run.code, run.err.startswith("error[")) == (2, True), run.err
    assert claude.view().result() == before


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172_800), ("0.5s", 0.5)]
)
def test_a_duration_is_a_number_with_units(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds
