"""State of a thread from outside of bodies: versions, functions that change it, conflicts, types."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

import msgspec
import pydantic
import pytest

from sennit import App
from sennit.errors import ConcurrentModificationError, PayloadError, PayloadTooLarge, SettingsError, UsageError
from sennit.model.thread import StateWrite
from sennit.threads.chains import TIPS_MAX

WAIT_S = 30.0


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/fleet.db"
    app = App(url, durability="normal")
    yield app
    app.close()


def more(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "n": state.get("n", 0) + 1}


def write_behind(app: App, thread_id: str, data: bytes, *, expected: int) -> None:
    """Write as another process would: this one's tips do not hear of it."""
    app.store.write_states([StateWrite(thread_id=thread_id, expected=expected, data=data)]).wait(WAIT_S)


# ---------------------------------------------------------------- reading and changing


def test_an_absent_state_is_what_its_type_is_without_arguments(app: App) -> None:
    @dataclass
    class Notes:
        lines: list[str] = field(default_factory=list)

    class Strict(msgspec.Struct):
        must: int

    assert app.thread("a").get().result() == {}
    assert app.thread("a", list[int]).get().result() == []
    assert app.thread("a", Notes).get().result() == Notes()
    assert app.thread("a", Strict).get().result() is None
    assert app.thread("a").get_versioned().result() == ({}, 0)


def test_an_update_makes_the_next_version_and_returns_it(app: App) -> None:
    thread = app.thread("a")

    assert thread.update(more).result() == {"n": 1}
    assert thread.update(more).result() == {"n": 2}
    assert thread.get_versioned().result() == ({"n": 2}, 2)


def test_state_and_config_have_versions_of_their_own(app: App) -> None:
    thread = app.thread("a")
    thread.update(more).result()
    thread.config.update(lambda c: {**c, "model": "small"}).result()

    assert thread.get_versioned().result() == ({"n": 1}, 1)
    assert thread.config.get_versioned().result() == ({"model": "small"}, 1)


def test_update_if_changes_only_the_version_it_names(app: App) -> None:
    thread = app.thread("a")

    assert thread.update_if(0, more).result() is True
    assert thread.update_if(0, more).result() is False
    assert thread.update_if(1, more).result() is True
    assert thread.get_versioned().result() == ({"n": 2}, 2)


def test_apply_is_all_or_nothing_and_one_version(app: App) -> None:
    thread = app.thread("a")

    assert thread.apply([more, more, more]).result() == {"n": 3}
    with pytest.raises(ZeroDivisionError):
        thread.apply([more, lambda s: {"n": s["n"] // 0}]).result()

    assert thread.get_versioned().result() == ({"n": 3}, 1)


def test_an_operation_that_is_known_changes_nothing_and_returns_what_it_made(app: App) -> None:
    thread = app.thread("a")
    first = thread.update(more, operation_id="charge 7").result()
    thread.update(more).result()

    assert thread.update(more, operation_id="charge 7").result() == first == {"n": 1}
    assert thread.update(more, operation_id="charge 8").result() == {"n": 3}
    assert thread.update(more).result() == {"n": 4}


def test_an_operation_whose_version_is_no_longer_kept_is_still_known(tmp_path: Path) -> None:
    app = App("memory://", state_versions=1)
    thread = app.thread("a")
    thread.update(more, operation_id="once").result()
    for _ in range(3):
        thread.update(more).result()

    assert thread.update(more, operation_id="once").result() == {"n": 4}
    assert thread.get_versioned().result() == ({"n": 4}, 4)
    app.close()


def test_history_holds_typed_versions_newest_first(app: App) -> None:
    class Count(msgspec.Struct):
        n: int = 0

    thread = app.thread("a", Count)
    for _ in range(3):
        thread.update(lambda c: Count(c.n + 1)).result()

    assert thread.history(2).result() == [(Count(3), 3), (Count(2), 2)]


# ---------------------------------------------------------------- functions that misbehave


def test_a_function_that_raises_changes_nothing(app: App) -> None:
    thread = app.thread("a")
    thread.update(more).result()

    with pytest.raises(KeyError):
        thread.update(lambda s: s["missing"]).result()

    assert thread.get_versioned().result() == ({"n": 1}, 1)


@pytest.mark.parametrize("bad", [None, 3, {"x": object()}, {1, 2}])
def test_a_function_that_returns_no_value_of_the_type_changes_nothing(app: App, bad: Any) -> None:
    thread = app.thread("a", dict[str, int])
    thread.update(more).result()

    with pytest.raises(PayloadError, match="what the function made of the state of thread 'a'"):
        thread.update(lambda _: cast("dict[str, int]", bad)).result()

    assert thread.get_versioned().result() == ({"n": 1}, 1)


def test_an_async_function_is_refused(app: App) -> None:
    async def later(state: dict[str, Any]) -> dict[str, Any]:
        return state

    with pytest.raises(UsageError, match="is async"):
        app.thread("a").update(cast("Any", later)).result()

    assert app.thread("a").get_versioned().result() == ({}, 0)


def test_a_function_that_changes_its_argument_in_place_harms_nobody(app: App) -> None:
    def vandal(state: dict[str, Any]) -> dict[str, Any]:
        state["broken"] = True
        raise OSError("after breaking it")

    thread = app.thread("a")
    thread.update(more).result()
    with pytest.raises(OSError, match="after breaking it"):
        thread.update(vandal).result()

    assert thread.update(more).result() == {"n": 2}


def test_a_state_that_is_too_large_is_refused(tmp_path: Path) -> None:
    app = App("memory://", payload_bytes_max=2048)

    with pytest.raises(PayloadTooLarge):
        app.thread("a").update(lambda _: {"text": "x" * 3000}).result()

    assert app.thread("a").get_versioned().result() == ({}, 0)
    app.close()


def test_an_updater_that_never_returns_holds_up_nobody_else(app: App) -> None:
    entered, leave = threading.Event(), threading.Event()

    def stuck(state: dict[str, Any]) -> dict[str, Any]:
        entered.set()
        assert leave.wait(WAIT_S)
        return more(state)

    caller = threading.Thread(target=lambda: app.thread("a").update(stuck).result())
    caller.start()
    assert entered.wait(WAIT_S)

    assert [app.thread("a").update(more).result()["n"] for _ in range(3)] == [1, 2, 3]
    assert app.thread("b").update(more).result() == {"n": 1}

    leave.set()
    caller.join(WAIT_S)
    assert app.thread("a").get().result() == {"n": 4}


# ---------------------------------------------------------------- types


class Draft(pydantic.BaseModel):
    title: str = ""
    tags: list[str] = []


class Totals(TypedDict, total=False):
    spent: float


def test_any_type_that_travels_as_json_can_be_a_state(app: App) -> None:
    @dataclass
    class Notes:
        lines: list[str] = field(default_factory=list)

    class Count(msgspec.Struct):
        n: int = 0

    assert app.thread("1", Count).update(lambda c: Count(c.n + 1)).result() == Count(1)
    assert app.thread("2", Notes).update(lambda n: Notes([*n.lines, "a"])).result() == Notes(["a"])
    assert app.thread("3", Totals).update(lambda t: {"spent": t.get("spent", 0.0) + 0.5}).result() == {"spent": 0.5}
    assert app.thread("4", Draft).update(lambda d: d.model_copy(update={"title": "T"})).result() == Draft(title="T")
    assert app.thread("5", int).update(lambda n: n + 1).result() == 1

    assert app.thread("1", Count).get().result() == Count(1)
    assert app.thread("4", Draft).get().result() == Draft(title="T")


def test_a_stored_state_that_does_not_fit_its_type_says_so(app: App) -> None:
    app.thread("a").update(lambda _: {"n": "many"}).result()

    with pytest.raises(PayloadError, match="the state of thread 'a' does not fit"):
        app.thread("a", dict[str, int]).get().result()


def test_a_type_that_is_none_is_refused_at_once(app: App) -> None:
    with pytest.raises(UsageError, match="cannot be read from JSON"):
        app.thread("a", cast("Any", "no type"))


@pytest.mark.parametrize("thread_id", ["", "x" * 1001, "a\0b", "\ud800", 7])
def test_a_thread_id_that_cannot_be_stored_is_refused_at_once(app: App, thread_id: Any) -> None:
    with pytest.raises(SettingsError):
        app.thread(thread_id)


@pytest.mark.parametrize("thread_id", ["../../etc", "naïve ☃ 線", "a/b\\c:d*?", "' OR 1=1 --", "\n"])
def test_any_other_text_names_a_thread(app: App, thread_id: str) -> None:
    app.thread(thread_id).update(more).result()

    assert app.thread(thread_id).get().result() == {"n": 1}


# ---------------------------------------------------------------- conflicts


def test_a_write_of_another_process_costs_one_conflict_and_no_data(app: App) -> None:
    thread = app.thread("a")
    thread.update(more).result()
    write_behind(app, "a", b'{"n":41}', expected=1)

    assert thread.update(more).result() == {"n": 42}
    assert thread.get_versioned().result() == ({"n": 42}, 3)


def test_updates_that_never_win_end_in_an_error_with_the_facts(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sennit.threads.state.PAUSE_S_MAX", 0.0001)  # a thousand pauses of 10 ms are for real life
    thread = app.thread("a")
    calls = []

    def slow(state: dict[str, Any]) -> dict[str, Any]:
        calls.append(1)
        write_behind(app, "a", b"{}", expected=len(calls) - 1)
        return state

    with pytest.raises(ConcurrentModificationError) as caught:
        thread.update(slow).result()

    assert (caught.value.thread_id, caught.value.expected, caught.value.actual) == ("a", 999, 1000)
    assert len(calls) == 1000


def test_what_was_built_on_a_write_that_failed_is_built_again(app: App) -> None:
    """Two updates of this process are on their way when another process wins, and writes the same version number."""
    thread = app.thread("a")
    thread.update(more).result()

    async def main() -> list[dict[str, Any]]:
        write_behind(app, "a", b'{"n":100}', expected=1)
        return await asyncio.gather(*(thread.update(more) for _ in range(5)))

    results = asyncio.run(main())

    assert sorted(r["n"] for r in results) == [101, 102, 103, 104, 105]
    assert thread.get_versioned().result() == ({"n": 105}, 7)


def test_a_known_operation_among_updates_under_way_breaks_none_of_them(app: App) -> None:
    thread = app.thread("a")
    thread.update(more, operation_id="known").result()

    async def main() -> list[dict[str, Any]]:
        return await asyncio.gather(
            *(thread.update(more, operation_id="known" if n % 3 == 0 else None) for n in range(9))
        )

    results = asyncio.run(main())

    assert [r["n"] for r in results[::3]] == [1, 1, 1]
    assert sorted(r["n"] for n, r in enumerate(results) if n % 3) == [2, 3, 4, 5, 6, 7]


def test_eight_os_threads_on_one_hot_state_lose_no_update(app: App) -> None:
    thread = app.thread("hot")
    seen: list[int] = []

    def work() -> None:
        seen.extend(thread.update(more).result()["n"] for _ in range(50))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(WAIT_S)

    assert sorted(seen) == list(range(1, 401))
    assert thread.get_versioned().result() == ({"n": 400}, 400)


def test_two_store_objects_on_one_file_lose_no_update(tmp_path: Path) -> None:
    """Each has tips of its own, so most of their writes meet a conflict."""
    apps = [App(f"sqlite:///{tmp_path}/fleet.db", durability="normal") for _ in range(2)]

    async def main() -> None:
        await asyncio.gather(*(app.thread("hot").update(more) for _ in range(50) for app in apps))

    asyncio.run(main())

    assert apps[0].thread("hot").get_versioned().result() == ({"n": 100}, 100)
    for app in apps:
        app.close()


def test_large_states_are_updated_without_a_tip(app: App) -> None:
    thread = app.thread("a")

    async def main() -> None:
        await asyncio.gather(
            *(thread.update(lambda s: {"text": "x" * 70_000, "n": s.get("n", 0) + 1}) for _ in range(20))
        )

    asyncio.run(main())

    assert thread.get().result()["n"] == 20


def test_more_threads_than_tips_are_updated_all_the_same(app: App) -> None:
    async def main() -> None:
        for _ in range(2):
            await asyncio.gather(*(app.thread(f"t{n}").update(more) for n in range(TIPS_MAX + 50)))

    asyncio.run(main())

    assert app.thread("t0").get_versioned().result() == ({"n": 2}, 2)
    assert app.thread(f"t{TIPS_MAX + 49}").get_versioned().result() == ({"n": 2}, 2)


# ---------------------------------------------------------------- fork and forget


def test_a_fork_has_the_state_and_the_config(app: App) -> None:
    thread = app.thread("a")
    thread.update(more).result()
    thread.config.update(lambda _: {"model": "small"}).result()

    fork = thread.fork("b").result()
    fork.update(more).result()

    assert fork.id == "b"
    assert (fork.get().result(), fork.config.get().result()) == ({"n": 2}, {"model": "small"})
    assert thread.get().result() == {"n": 1}


def test_a_fork_can_begin_at_an_older_version(app: App) -> None:
    thread = app.thread("a")
    for _ in range(3):
        thread.update(more).result()

    assert thread.fork("b", version=2).result().get_versioned().result() == ({"n": 2}, 1)


def test_a_fork_never_writes_over_a_thread(app: App) -> None:
    app.thread("a").update(more).result()
    app.thread("b").update(lambda _: {"mine": True}).result()

    with pytest.raises(ConcurrentModificationError):
        app.thread("a").fork("b").result()
    with pytest.raises(ConcurrentModificationError):
        app.thread("empty").fork("b").result()

    assert app.thread("b").get().result() == {"mine": True}


@pytest.mark.parametrize("version", [1, 99])
def test_a_fork_of_a_version_that_is_not_kept_says_so(version: int) -> None:
    app = App("memory://", state_versions=2)
    for _ in range(5):
        app.thread("a").update(more).result()

    with pytest.raises(UsageError, match=f"no version {version}"):
        app.thread("a").fork("b", version=version).result()

    assert app.thread("b").get_versioned().result() == ({}, 0)
    app.close()


def test_a_forgotten_thread_begins_again(app: App) -> None:
    thread = app.thread("a")
    thread.update(more).result()

    assert thread.forget().result() is True
    assert thread.forget().result() is False
    assert thread.get().result() == {}
    assert thread.update(more).result() == {"n": 1}


def test_result_in_async_code_is_refused(app: App) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="await"):
            app.thread("a").get().result()
        assert await app.thread("a").get() == {}

    asyncio.run(main())
