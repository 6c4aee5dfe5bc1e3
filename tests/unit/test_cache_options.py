"""What a submit says about entering: options are checked at once, and equal calls have equal cache keys."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit import App
from sennit.errors import PayloadError, SettingsError
from sennit.model.admission import Entry
from sennit.submit.codec import Codec
from sennit.submit.options import Options
from sennit.submit.registry import Registry, Task


class Place(msgspec.Struct):
    city: str
    zone: str = "eu"


def price(item: str, n: int = 1, *, place: Place | None = None, extras: dict[str, Any] | None = None) -> None: ...


def any_thing(value: Any) -> None: ...


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = App(f"sqlite:///{tmp_path}/fleet.db", durability="normal")
    yield app
    app.close()


def entry_of(task: Task[Any, Any], *args: Any, **kwargs: Any) -> Entry | None:
    """Return how such a call would enter."""
    client: Any = task._client
    [spec] = client.specs([task.call(*args, **kwargs)])
    entry: Entry | None = spec.entry
    return entry


# ---------------------------------------------------------------- entries


def test_a_plain_task_enters_without_conditions(app: App) -> None:
    task = app.task(price)

    assert entry_of(task, "tea") is None
    assert entry_of(task.options(thread_id="a", priority="low", on_full="shed", cache_tags=["x"]), "tea") is None


def test_options_become_the_conditions_of_the_entry() -> None:
    options = Options(queue="q").replaced(
        {"thread_id": "a", "on_busy": "interrupt", "on_full": "shed", "cache_s": 2.5, "cache_tags": ["x", "y"]}
    )

    assert options.entry(queue_max=9, on_full="block") == Entry(
        on_busy="interrupt", queue_max=9, on_full="shed", cache_us=2_500_000, cache_tags=("x", "y")
    )


def test_a_call_that_says_nothing_about_a_full_queue_does_as_the_settings_say() -> None:
    assert Options(queue="q").entry(queue_max=9, on_full="reject") == Entry(queue_max=9, on_full="reject")


def test_on_busy_is_nothing_without_a_thread() -> None:
    assert Options(queue="q", on_busy="reject").entry(queue_max=0, on_full="block") is None


def test_the_decorator_sets_defaults_and_a_call_overrides_them(app: App) -> None:
    task = app.task(on_busy="reject", cache_s=60, cache_tags=["prices"])(price)

    entry = entry_of(task.options(thread_id="a"), "tea")
    assert entry is not None
    assert (entry.on_busy, entry.cache_us, entry.cache_tags) == ("reject", 60_000_000, ("prices",))
    assert entry_of(task.options(cache_s=0), "tea") is None


def test_the_decorators_own_keywords_stand_beside_its_options() -> None:
    handler = Registry().register(price, cache_s=60, options={"cache_s": 5, "priority": "high"})

    assert (handler.options.cache_us, handler.options.priority) == (60_000_000, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_busy": "wait"},
        {"on_full": "drop"},
        {"cache_s": -1},
        {"cache_s": float("inf")},
        {"cache_s": float("nan")},
        {"cache_s": "1"},
        {"cache_tags": [""]},
        {"cache_tags": 3},
        {"cache_tags": [3]},
        {"thread_id": ""},
        {"thread_id": "x" * 10_000},
        {"thread_id": "a\0b"},
        {"thread_id": "\ud800"},
        {"thread_id": 7},
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_before_anything_is_handed_in(app: App, wrong: dict[str, Any]) -> None:
    task = app.task(price)

    with pytest.raises(SettingsError):
        task.options(**wrong)
    assert app.ledger().result().submitted == 0


def test_one_tag_need_not_be_a_list() -> None:
    assert Options(queue="q").replaced({"cache_tags": "prices"}).cache_tags == ("prices",)


def test_a_cpu_handler_cannot_be_preemptible() -> None:
    with pytest.raises(SettingsError, match="preemptible"):
        Registry().register(price, cpu=True, preemptible=True)


def test_a_schedule_whose_runs_could_be_refused_is_refused_itself(app: App) -> None:
    task = app.task(any_thing).options(thread_id="a", on_busy="reject")

    with pytest.raises(SettingsError, match="on_busy"):
        app.cron("* * * * *", task)  # type: ignore[arg-type]  # the parameter does not matter here


# ---------------------------------------------------------------- keys


def key(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    return Codec(function, "handler").key(args, kwargs)


@pytest.mark.parametrize(
    "same",
    [
        lambda: key(price, "tea", 2),
        lambda: key(price, "tea", n=2),
        lambda: key(price, n=2, item="tea"),
    ],
)
def test_how_arguments_are_passed_does_not_matter(same: Callable[[], str]) -> None:
    assert same() == key(price, "tea", 2)


def test_the_order_of_keys_and_sets_and_the_kind_of_value_do_not_matter() -> None:
    a = key(price, "tea", place=Place("Rome"), extras={"a": {"x": 1, "y": 2}, "b": {3, 1, 2}})
    b = key(price, "tea", place={"zone": "eu", "city": "Rome"}, extras={"b": [1, 2, 3], "a": {"y": 2, "x": 1}})

    assert a == b


@given(st.dictionaries(st.text(), st.integers(-(2**53), 2**53) | st.text() | st.lists(st.booleans())), st.randoms())
def test_a_shuffled_dictionary_has_the_same_key(value: dict[str, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)

    assert key(any_thing, dict(items)) == key(any_thing, value)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 2), (1, "1"), (1, True), (0, None), ([1, 2], [2, 1]), ({"a": 1}, {"a": 2}), ("", None), (1, 1.5)],
)
def test_other_arguments_have_another_key(one: Any, other: Any) -> None:
    assert key(any_thing, one) != key(any_thing, other)


def test_the_key_is_the_same_in_every_process(tmp_path: Path) -> None:
    program = (
        "from sennit.submit.codec import Codec\n"
        "def any_thing(value): ...\n"
        "print(Codec(any_thing, 'handler').key([{'b': {'x', 'y', 'z', 'w'}, 'a': 1}], {}))\n"
    )
    keys = {
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert keys == {key(any_thing, {"b": {"w", "x", "y", "z"}, "a": 1}) + "\n"}


def test_results_of_other_tasks_among_the_arguments_have_no_key(app: App) -> None:
    task = app.task(cache_s=60)(any_thing)
    parent = task.submit(1)

    with pytest.raises(SettingsError, match="cache_s=0"):
        task.submit(parent)
    with pytest.raises(PayloadError, match="cache key"):
        task.invalidate(parent)
    assert app.ledger().result().submitted == 1


def test_a_task_that_only_starts_after_others_may_be_cached(app: App) -> None:
    task = app.task(cache_s=60)(any_thing)
    parent = task.submit(1)

    entry = entry_of(task.options(after=parent), 2)

    assert entry is not None
    assert entry.cache_key == key(any_thing, 2)


def test_every_call_of_a_batch_has_its_own_key(app: App) -> None:
    task = app.task(cache_s=60)(any_thing)
    client: Any = task._client

    specs = client.specs([task.call(n) for n in (1, 2, 1)])

    keys = [spec.entry.cache_key for spec in specs]
    assert keys[0] == keys[2] != keys[1]
