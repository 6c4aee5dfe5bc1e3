"""Registry: a snapshot never changes, a batch is seen whole or not at all, subscribers hear everything in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import pytest

from sennit.errors import SeedFailed, UsageError
from sennit.sync import changes, registry
from sennit.sync.changes import Change
from sennit.sync.registry import Registration, Registry
from sennit.testing.preempt import Case, explore, point

SEEDS = range(80)
Make = Callable[[], Registry[str, int]]


class ChangesSnapshots(Registry[str, int]):
    """Forgets to copy."""

    def _writable(self) -> dict[str, int]:
        return self._values


class OneByOne(Registry[str, int]):
    """Registers a batch one after the other."""

    def register_all(self, registrations: Iterable[Registration[str, int]], *, replace: bool = False) -> None:
        for one in registrations:
            self.register(one.key, one.value, replace=replace)


class ChecksFirst(Registry[str, int]):
    """Looks whether the key is free outside of the lock."""

    def register(self, key: str, value: int, **options: object) -> None:
        if key in self:
            raise UsageError("is registered")
        super().register(key, value, replace=True)


def snapshots_stay(make: Make) -> Case:
    agents = make()
    agents.register("first", 0)

    def write() -> None:
        for n in range(4):
            agents.register(f"agent-{n}", n)
        agents.unregister("first")

    def read() -> None:
        snapshot = agents.snapshot()
        before = dict(snapshot)
        point()
        items = []
        for item in snapshot.items():
            items.append(item)
            point()
        assert dict(items) == before == dict(snapshot)

    return Case([write, read], lambda: len(agents) == 4 and "first" not in agents)


def batch_whole(make: Make) -> Case:
    """Who sees one of a batch sees all: the last key first, then the first."""
    agents = make()

    def write() -> None:
        agents.register_all([Registration("a", 1), Registration("b", 2)])

    def read() -> None:
        for _ in range(4):
            first, second = agents.get("a"), agents.get("b")
            if first is not None:
                assert second == 2

    return Case([write, read])


def one_registers(make: Make) -> Case:
    agents, won = make(), []

    def claim(me: int) -> None:
        try:
            agents.register("name", me)
        except UsageError:
            return
        won.append(me)

    return Case([partial(claim, me) for me in (1, 2, 3)], lambda: won == [agents["name"]])


def told_in_order(make: Make) -> Case:
    agents = make()
    heard: list[Change[str, int]] = []
    agents.subscribe(heard.append)

    def write(me: int) -> None:
        agents.register(f"{me}-a", me)
        agents.register_all([Registration(f"{me}-b", me), Registration(f"{me}-c", me)])
        agents.unregister(f"{me}-a")

    def check() -> bool:
        versions = [change.version for change in heard]
        replayed: dict[str, int | None] = {}
        for change in heard:
            if change.deleted:
                del replayed[change.key]
            else:
                replayed[change.key] = change.value
        return versions == list(range(1, 9)) and replayed == dict(agents.items())

    return Case([lambda: write(1), lambda: write(2)], check)


@pytest.mark.parametrize("case", [snapshots_stay, batch_whole, one_registers, told_in_order])
def test_no_schedule_breaks_a_promise_of_the_registry(case: Callable[[Make], Case]) -> None:
    explore(lambda: case(Registry), SEEDS, watch=[registry, changes])


@pytest.mark.parametrize(
    ("mutant", "case"),
    [(ChangesSnapshots, snapshots_stay), (OneByOne, batch_whole), (ChecksFirst, one_registers)],
)
def test_a_registry_that_breaks_a_promise_is_found(mutant: Make, case: Callable[[Make], Case]) -> None:
    with pytest.raises(SeedFailed):
        explore(lambda: case(mutant), range(300), watch=[registry, changes])


def test_a_thousand_registrations_copy_nothing_and_one_copy_follows_a_snapshot() -> None:
    agents: Registry[str, int] = Registry()
    for n in range(1000):
        agents.register(f"agent-{n}", n)
    assert agents.statistics().copies == 0

    empty_batch = agents.snapshot()
    for n in range(1000, 2000):
        agents.register(f"agent-{n}", n)

    assert agents.statistics().copies == 1
    assert len(empty_batch) == 1000
    agents.register_all(Registration(f"late-{n}", n) for n in range(1000))
    assert agents.statistics().copies == 2
    assert len(agents) == 3000


def test_kinds_and_labels_find_what_was_registered_with_them() -> None:
    agents: Registry[str, int] = Registry()
    agents.register("ann", 1, kind="writer", labels=["fast", "cheap"])
    agents.register_all([Registration("bob", 2, "writer"), Registration("cid", 3, "reader", frozenset({"fast"}))])

    assert agents.by_kind("writer") == [("ann", 1), ("bob", 2)]
    assert agents.by_label("fast") == [("ann", 1), ("cid", 3)]
    agents.register("ann", 4, kind="reader", replace=True)
    assert agents.by_kind("writer") == [("bob", 2)]
    assert agents.by_label("cheap") == []
    assert agents.by_kind("reader") == [("cid", 3), ("ann", 4)]
    agents.unregister("cid")
    assert agents.by_label("fast") == []
    assert agents.by_kind("nobody") == []


def test_a_name_is_registered_once_and_a_batch_with_a_known_one_adds_nothing() -> None:
    agents: Registry[str, int] = Registry()
    agents.register("ann", 1)

    with pytest.raises(UsageError, match="'ann' is registered already"):
        agents.register("ann", 2)
    with pytest.raises(UsageError, match="'ann' is registered already"):
        agents.register_all([Registration("bob", 2), Registration("ann", 3)])
    with pytest.raises(UsageError, match="'bob' comes twice"):
        agents.register_all([Registration("bob", 2), Registration("bob", 3)])

    assert list(agents.items()) == [("ann", 1)]
    assert not agents.unregister("bob")
    assert agents.get("bob") is None
    assert agents.get("bob", 7) == 7
    with pytest.raises(KeyError):
        agents["bob"]


def test_an_error_in_a_write_leaves_snapshots_alone() -> None:
    agents: Registry[object, int] = Registry()
    agents.register("ann", 1)
    snapshot = agents.snapshot()

    with pytest.raises(TypeError, match="unhashable"):
        agents.register([], 2, replace=True)
    agents.register("bob", 2)

    assert dict(snapshot) == {"ann": 1}


def test_a_subscriber_may_write_and_one_that_fails_is_no_problem_of_the_writer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agents: Registry[str, int] = Registry()
    heard: list[str] = []

    def echo(change: Change[str, int]) -> None:
        heard.append(change.key)
        if change.key == "ann":
            agents.register("echo", 0)
            raise ZeroDivisionError

    end = agents.subscribe(echo)
    agents.register_all([Registration("ann", 1), Registration("bob", 2)])
    end()
    end()
    agents.register("cid", 3)

    assert heard == ["ann", "bob", "echo"]
    assert "ZeroDivisionError" in caplog.text
    assert list(agents) == ["ann", "bob", "echo", "cid"]
