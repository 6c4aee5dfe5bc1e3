"""Versioned values: no update is lost, a conflict is seen, and listeners hear every commit in order."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sennit.errors import ConcurrentModificationError, UsageError
from sennit.sync.versioned import Change, Versioned, VersionedMap

OS_THREADS = 8
EACH = 500
WAIT_S = 30.0


def run_in_os_threads(work: Callable[[], object], n: int = OS_THREADS) -> None:
    start = threading.Barrier(n)
    errors: list[BaseException] = []

    def run() -> None:
        start.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised in the test
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def increment(n: int) -> int:
    """The window of the race: another OS thread runs in the middle of it."""
    time.sleep(0)
    return n + 1


# ---------------------------------------------------------------- races


def test_updates_from_many_os_threads_lose_nothing() -> None:
    counts: VersionedMap[str, int] = VersionedMap()

    def work() -> None:
        for _ in range(EACH):
            counts.update("n", increment, default=0)

    run_in_os_threads(work)

    assert counts.get_versioned("n") == Versioned(OS_THREADS * EACH, OS_THREADS * EACH)
    assert counts.statistics().conflicts > 0  # or the test has shown nothing


def test_loops_of_compare_and_set_lose_nothing() -> None:
    counts: VersionedMap[str, int] = VersionedMap()

    def work() -> None:
        for _ in range(EACH):
            while True:
                value, version = counts.get_versioned("n")
                if counts.compare_and_set("n", version, increment(value or 0)):
                    break

    run_in_os_threads(work)

    assert counts.get("n") == OS_THREADS * EACH
    assert counts.statistics().conflicts > 0


def test_without_the_comparison_most_increments_are_lost() -> None:
    """The same window, unprotected: shows that the two tests above can fail."""
    counts: VersionedMap[str, int] = VersionedMap()

    def work() -> None:
        for _ in range(EACH):
            counts.set("n", increment(counts.get("n", 0)))

    run_in_os_threads(work)

    assert counts.get("n", 0) < OS_THREADS * EACH * 0.9


def test_one_operation_from_many_os_threads_is_done_once() -> None:
    counts: VersionedMap[str, int] = VersionedMap()
    seen: list[int] = []

    def work() -> None:
        seen.extend(counts.update("n", increment, default=0, operation_id=f"add {n}") for n in range(EACH))

    run_in_os_threads(work)

    assert counts.get("n") == EACH
    assert len(seen) == OS_THREADS * EACH


# ---------------------------------------------------------------- one value


def test_a_missing_key_has_version_zero() -> None:
    values: VersionedMap[str, int] = VersionedMap()

    assert values.get("a") is None
    assert values.get("a", 7) == 7
    assert values.get_versioned("a") == (None, 0)
    assert "a" not in values


def test_versions_count_commits() -> None:
    values: VersionedMap[str, str] = VersionedMap()

    assert [values.set("a", "x"), values.set("a", "y"), values.set("b", "z")] == [1, 2, 1]
    assert dict(values.items()) == {"a": ("y", 2), "b": ("z", 1)}
    assert len(values) == 2


def test_compare_and_set_refuses_what_was_read_too_early() -> None:
    values: VersionedMap[str, int] = VersionedMap()

    assert values.compare_and_set("a", 0, 1)
    assert not values.compare_and_set("a", 0, 2)
    assert values.compare_and_set("a", 1, 3)
    assert values.get_versioned("a") == (3, 2)
    assert values.statistics().conflicts == 1


def test_a_deleted_key_starts_above_every_version_it_had() -> None:
    values: VersionedMap[str, int] = VersionedMap()
    values.set("a", 1)

    assert values.delete("a")
    assert not values.delete("a")
    assert values.get_versioned("a") == (None, 0)
    assert values.set("a", 2) > 1
    assert not values.compare_and_set("a", 1, 3)  # read before the deletion


def test_a_function_that_raises_changes_nothing() -> None:
    values: VersionedMap[str, int] = VersionedMap()
    values.set("a", 1)

    with pytest.raises(ZeroDivisionError):
        values.update("a", lambda n: n // 0)
    with pytest.raises(ZeroDivisionError):
        values.apply("a", [lambda n: n + 1, lambda n: n // 0])

    assert values.get_versioned("a") == (1, 1)


def test_an_update_without_default_needs_the_key() -> None:
    values: VersionedMap[str, int] = VersionedMap()

    with pytest.raises(KeyError):
        values.update("a", increment)
    with pytest.raises(KeyError):
        values.update_if("a", 0, increment)
    assert not values.update_if("a", 3, increment)
    assert values.update_if("a", 0, increment, default=4)
    assert values.get("a") == 5


def test_apply_is_one_commit() -> None:
    values: VersionedMap[str, int] = VersionedMap()

    assert values.apply("a", [lambda n: n + 1, lambda n: n * 10], default=2) == 30
    assert values.get_versioned("a") == (30, 1)


def test_update_if_commits_only_on_the_version_it_was_asked_for() -> None:
    values: VersionedMap[str, int] = VersionedMap()
    values.set("a", 1)

    def overtaken(n: int) -> int:
        values.set("a", 100)
        return n + 1

    assert not values.update_if("a", 1, overtaken)
    assert values.get_versioned("a") == (100, 2)
    assert values.update_if("a", 2, increment)


def test_an_update_that_is_always_overtaken_gives_up_and_says_so() -> None:
    values: VersionedMap[str, int] = VersionedMap(attempts_max=5)

    def overtaken(n: int) -> int:
        values.set("a", n + 100)
        return n + 1

    with pytest.raises(ConcurrentModificationError) as caught:
        values.update("a", overtaken, default=0)

    assert (caught.value.thread_id, caught.value.expected, caught.value.actual) == ("a", 4, 5)
    assert values.statistics().conflicts == 5


def test_a_repeated_operation_changes_nothing() -> None:
    values: VersionedMap[str, int] = VersionedMap()

    assert values.update("a", increment, default=0, operation_id="x") == 1
    assert values.update("a", increment, default=0, operation_id="y") == 2
    assert values.update("a", increment, default=0, operation_id="x") == 2
    assert values.update("b", increment, default=0, operation_id="x") == 1  # another key, another operation


def test_an_operation_that_failed_is_not_remembered() -> None:
    values: VersionedMap[str, int] = VersionedMap()

    with pytest.raises(ZeroDivisionError):
        values.update("a", lambda n: n // 0, default=0, operation_id="x")

    assert values.update("a", increment, default=0, operation_id="x") == 1


def test_only_the_last_operations_of_a_key_are_remembered() -> None:
    values: VersionedMap[str, int] = VersionedMap(operations_max=2)
    for name in ("x", "y", "z"):
        values.update("a", increment, default=0, operation_id=name)

    assert values.update("a", increment, operation_id="z") == 3
    assert values.update("a", increment, operation_id="x") == 4  # forgotten


class Dying:
    """A value whose last reference runs code of its owner."""

    def __init__(self, when: Callable[[], object]) -> None:
        self.when = when

    def __del__(self) -> None:
        self.when()


def test_a_replaced_value_may_use_the_map_when_it_dies() -> None:
    values: VersionedMap[str, object] = VersionedMap()
    values.set("a", Dying(lambda: values.set("died", 1)))
    values.set("a", Dying(lambda: values.set("died", 2)))
    values.update("a", lambda _: None)
    values.set("b", Dying(lambda: values.set("died", 3)))
    values.delete("b")

    assert values.get_versioned("died") == (3, 3)


class AsADict(RuleBasedStateMachine):
    """Whatever is done, the values are a dict's, and a version is never used twice for a key."""

    keys = st.sampled_from("ab")

    def __init__(self) -> None:
        super().__init__()
        self.values: VersionedMap[str, int] = VersionedMap(operations_max=2)
        self.model: dict[str, int] = {}
        self.done: defaultdict[str, list[str]] = defaultdict(list)
        self.heard: defaultdict[str, list[Change[str, int]]] = defaultdict(list)
        self.values.subscribe(lambda change: self.heard[change.key].append(change))

    @rule(key=keys, n=st.integers())
    def set(self, key: str, n: int) -> None:
        self.values.set(key, n)
        self.model[key] = n

    @rule(key=keys, n=st.integers(), off=st.integers(-1, 1))
    def compare_and_set(self, key: str, n: int, off: int) -> None:
        if self.values.compare_and_set(key, self.values.get_versioned(key).version + off, n):
            assert off == 0
            self.model[key] = n
        else:
            assert off != 0

    @rule(key=keys, name=st.sampled_from("xyz") | st.none())
    def update(self, key: str, name: str | None) -> None:
        returned = self.values.update(key, lambda n: n + 1, default=0, operation_id=name)
        if name not in self.done[key]:
            self.model[key] = self.model.get(key, 0) + 1
            if name is not None:
                self.done[key] = [*self.done[key], name][-2:]
        assert returned == self.model[key]

    @rule(key=keys)
    def delete(self, key: str) -> None:
        assert self.values.delete(key) == (self.model.pop(key, None) is not None)
        self.done[key] = []

    @invariant()
    def they_agree(self) -> None:
        assert {key: state.value for key, state in self.values.items()} == self.model
        for key, changes in self.heard.items():
            assert all(before.version < after.version for before, after in pairwise(changes))
            assert self.values.get(key) == changes[-1].value


TestAsADict = AsADict.TestCase


# ---------------------------------------------------------------- being told


def test_subscribers_hear_every_commit_in_version_order() -> None:
    counts: VersionedMap[int, int] = VersionedMap()
    heard: defaultdict[int, list[int]] = defaultdict(list)

    def hear(change: Change[int, int]) -> None:
        time.sleep(0)  # others commit meanwhile
        heard[change.key].append(change.version)

    counts.subscribe(hear)

    def work() -> None:
        for n in range(EACH):
            counts.update(n % 2, increment, default=0)

    run_in_os_threads(work)

    assert heard == {key: list(range(1, OS_THREADS * EACH // 2 + 1)) for key in (0, 1)}


def test_a_subscriber_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    values: VersionedMap[str, int] = VersionedMap()
    heard: list[int] = []
    values.subscribe(lambda _: 1 // 0)
    values.subscribe(lambda change: heard.append(change.version))

    with caplog.at_level(logging.ERROR):
        values.set("a", 1)
        values.set("a", 2)

    assert heard == [1, 2]
    assert caplog.messages == ["a subscriber failed on 'a'"] * 2


def test_a_subscriber_that_stops_the_program_does_so_after_the_others_heard() -> None:
    values: VersionedMap[str, int] = VersionedMap()
    heard: list[int] = []

    def stop(_: Change[str, int]) -> None:
        raise SystemExit(3)

    end = values.subscribe(stop)
    values.subscribe(lambda change: heard.append(change.version))

    with pytest.raises(SystemExit):
        values.set("a", 1)
    end()
    values.set("a", 2)

    assert heard == [1, 2]


def test_a_subscriber_may_commit_and_is_told_in_order() -> None:
    values: VersionedMap[str, int] = VersionedMap()
    heard: list[tuple[str, int | None]] = []

    def hear(change: Change[str, int]) -> None:
        if change.value == 1:
            values.set("a", 2)
            values.set("b", 3)
        heard.append((change.key, change.value))

    values.subscribe(hear)
    values.set("a", 1)

    assert heard == [("b", 3), ("a", 1), ("a", 2)]  # in order per key


def test_an_ended_subscription_hears_no_more_and_a_deletion_is_a_change() -> None:
    values: VersionedMap[str, int] = VersionedMap()
    heard: list[Change[str, int]] = []
    end = values.subscribe(heard.append)

    values.set("a", 1)
    values.delete("a")
    end()
    values.set("a", 2)

    assert heard == [Change("a", 1, 1), Change("a", None, 2, deleted=True)]


# ---------------------------------------------------------------- waiting


def test_a_wait_for_what_is_there_does_not_wait() -> None:
    values: VersionedMap[str, int] = VersionedMap()
    values.set("a", 5)

    assert values.wait_for("a").result() == (5, 1)
    assert values.wait_for("a", lambda n: n > 4, version=1).result() == (5, 1)


def test_an_os_thread_waits_for_a_value() -> None:
    values: VersionedMap[str, int] = VersionedMap()
    entered = threading.Event()
    got: list[Versioned[int]] = []

    def is_three(n: int) -> bool:
        entered.set()
        return n == 3

    waiter = threading.Thread(target=lambda: got.append(values.wait_for("a", is_three).result(WAIT_S)))
    values.set("a", 0)
    waiter.start()
    assert entered.wait(WAIT_S)
    for n in range(1, 6):  # three is replaced at once and still seen
        values.set("a", n)
    waiter.join()

    assert got == [(3, 4)]


def test_a_blocking_wait_ends_in_time_and_leaves_nothing_behind() -> None:
    values: VersionedMap[str, int] = VersionedMap()

    with pytest.raises(TimeoutError):
        values.wait_for("a").result(0.01)

    assert values._changes._of_key == {}


def test_coroutines_wait_for_versions_set_in_an_os_thread() -> None:
    async def scenario() -> None:
        values: VersionedMap[str, int] = VersionedMap()

        async def wait(version: int) -> int:
            return (await values.wait_for("n", version=version)).version

        waits = [asyncio.ensure_future(wait(version)) for version in (1, 10, 100)]
        await asyncio.sleep(0)  # all of them wait
        await asyncio.to_thread(lambda: [values.update("n", increment, default=0) for _ in range(100)])

        assert await asyncio.gather(*waits) == [1, 10, 100]
        assert values._changes._of_key == {}

    asyncio.run(scenario())


def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        values: VersionedMap[str, int] = VersionedMap()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await values.wait_for("a")

        assert values._changes._of_key == {}

    asyncio.run(scenario())


def test_a_blocking_wait_is_refused_on_an_event_loop() -> None:
    async def scenario() -> None:
        values: VersionedMap[str, int] = VersionedMap()

        with pytest.raises(UsageError, match="event loop"):
            values.wait_for("a").result()

    asyncio.run(scenario())


def test_what_a_predicate_raises_reaches_the_waiter_and_not_the_writer() -> None:
    values: VersionedMap[str, int] = VersionedMap()
    asked = threading.Event()
    caught: list[str] = []

    def predicate(n: int) -> bool:
        asked.set()
        return 1 // n > 1

    def wait() -> None:
        try:
            values.wait_for("a", predicate).result(WAIT_S)
        except ZeroDivisionError as error:
            caught.append(str(error))

    values.set("a", 1)
    waiter = threading.Thread(target=wait)
    waiter.start()
    assert asked.wait(WAIT_S)
    values.set("a", 0)
    waiter.join()

    assert len(caught) == 1


def test_a_map_that_nobody_awaits_does_not_import_asyncio() -> None:
    code = (
        "import sys\n"
        "from sennit.sync.versioned import VersionedMap\n"
        "values = VersionedMap(); values.subscribe(print); values.update('a', lambda n: n + 1, default=0)\n"
        "print('asyncio' in sys.modules)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "False"
