"""ShardedMap loses no write under schedules drawn from a seed, and is a dict to whoever is alone with it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from operator import add

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.errors import SeedFailed, SettingsError, UsageError
from sennit.sync import shards
from sennit.sync.shards import ShardedMap
from sennit.testing.preempt import Case, explore, point

SEEDS = range(80)
Make = Callable[[], ShardedMap[Hashable, int]]


class UnlockedUpdate(ShardedMap[Hashable, int]):
    """Reads, computes and writes without the lock."""

    def update(self, key: Hashable, fn: Callable[[int], int], *, default: int = 0) -> int:
        new = fn(self.get(key, default))
        self.set(key, new)
        return new


class UnlockedCompare(ShardedMap[Hashable, int]):
    """Compares outside of the lock."""

    def compare_and_set(self, key: Hashable, expected: int | None, new: int) -> bool:
        if self.get(key) != expected:
            return False
        self.set(key, new)
        return True


class ShardByShard(ShardedMap[Hashable, int]):
    """Copies each shard at its own moment."""

    def items(self) -> list[tuple[Hashable, int]]:
        found: list[tuple[Hashable, int]] = []
        for shard in self._shards:
            with shard.lock:
                found += shard.values.items()
        return found


def updates(make: Make) -> Case:
    numbers = make()

    def add_two() -> None:
        for _ in range(2):
            numbers.update("n", increased, default=0)

    return Case([add_two] * 3, lambda: numbers.get("n") == 6)


def increased(n: int) -> int:
    return n + 1


def one_winner(make: Make) -> Case:
    """Of those that saw the same value one writes."""
    numbers, won = make(), []
    numbers.set("n", 0)

    def compete(me: int) -> None:
        if numbers.compare_and_set("n", 0, me):
            won.append(me)

    return Case([partial(compete, me) for me in (1, 2, 3)], lambda: len(won) == 1 and numbers.get("n") == won[0])


def one_moment(make: Make) -> Case:
    """`first` is always written before `second`, so no moment has a newer second."""
    numbers = make()
    keys = range(8)  # hash(n) == n: each in a shard of its own

    def write() -> None:
        for n in range(1, 3):
            for key in keys:
                numbers.set(key, n)

    def read() -> None:
        for _ in range(3):
            found = dict(numbers.items())
            values = [found.get(key, 0) for key in keys]
            assert values == sorted(values, reverse=True)

    return Case([write, read])


def setdefault_once(make: Make) -> Case:
    numbers, got = make(), []

    def claim(me: int) -> None:
        got.append(numbers.setdefault("n", me))

    return Case([partial(claim, me) for me in (1, 2, 3)], lambda: len(set(got)) == 1)


def popped_once(make: Make) -> Case:
    numbers, got = make(), []
    numbers.set("n", 1)

    def take() -> None:
        got.append(numbers.pop("n", 0))

    return Case([take] * 3, lambda: sorted(got) == [0, 0, 1])


def iteration_while_written(make: Make) -> Case:
    numbers = make()
    for n in range(10):
        numbers.set(f"stays-{n}", n)

    def write() -> None:
        for n in range(10):
            numbers.set(f"comes-{n}", n)
            point()

    def read() -> None:
        seen = list(numbers)
        assert len(set(seen)) == len(seen)
        assert {f"stays-{n}" for n in range(10)} <= set(seen)

    return Case([write, read], lambda: len(numbers) == 20)


CASES = [updates, one_winner, one_moment, setdefault_once, popped_once, iteration_while_written]


@pytest.mark.parametrize("case", CASES)
def test_no_schedule_breaks_a_promise_of_the_map(case: Callable[[Make], Case]) -> None:
    explore(lambda: case(ShardedMap), SEEDS, watch=[shards])


@pytest.mark.parametrize(
    ("mutant", "case"), [(UnlockedUpdate, updates), (UnlockedCompare, one_winner), (ShardByShard, one_moment)]
)
def test_a_map_that_leaves_out_a_lock_is_found(mutant: Make, case: Callable[[Make], Case]) -> None:
    with pytest.raises(SeedFailed):
        explore(lambda: case(mutant), range(300), watch=[shards])


KEYS = st.one_of(st.integers(0, 5), st.sampled_from(["a", "b"]), st.none())
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["set", "pop", "setdefault", "compare_and_set", "update"]), KEYS, st.integers(0, 3)),
    max_size=30,
)


@given(OPERATIONS, st.sampled_from([1, 2, 16]))
def test_alone_with_it_it_is_a_dict(operations: list[tuple[str, Hashable, int]], count: int) -> None:
    mapped: ShardedMap[Hashable, int] = ShardedMap(shards=count)
    model: dict[Hashable, int] = {}

    for name, key, value in operations:
        match name:
            case "set":
                mapped[key] = model[key] = value
            case "pop":
                assert mapped.pop(key, -1) == model.pop(key, -1)
            case "setdefault":
                assert mapped.setdefault(key, value) == model.setdefault(key, value)
            case "compare_and_set":
                same = model.get(key) == value
                assert mapped.compare_and_set(key, value, value + 1) == same
                if same:
                    model[key] = value + 1
            case _:
                model[key] = model.get(key, 0) + value
                assert mapped.update(key, partial(add, value), default=0) == model[key]

    assert dict(mapped.items()) == model
    assert set(mapped) == set(model)
    assert len(mapped) == len(model)
    assert all(key in mapped and mapped[key] == mapped.get(key) == value for key, value in model.items())


def test_what_is_not_there_is_a_key_error_and_a_failing_update_changes_nothing() -> None:
    numbers: ShardedMap[str, int] = ShardedMap()

    with pytest.raises(KeyError):
        numbers["n"]
    with pytest.raises(KeyError):
        numbers.pop("n")
    with pytest.raises(KeyError):
        numbers.update("n", increased)
    numbers.set("n", 0)
    with pytest.raises(ZeroDivisionError):
        numbers.update("n", lambda n: 1 // n)

    assert numbers.items() == [("n", 0)]
    assert numbers.compare_and_set("new", None, 1)  # None: is not there
    numbers.clear()
    assert len(numbers) == 0


def test_an_update_that_uses_the_map_is_an_error_and_no_hang() -> None:
    numbers: ShardedMap[str, int] = ShardedMap(shards=1)
    numbers.set("n", 1)

    for use in (lambda n: numbers.pop("n"), lambda n: len(numbers.items()), lambda n: len(list(numbers))):
        with pytest.raises(UsageError, match="uses the map"):
            numbers.update("n", use)

    assert numbers.update("n", lambda n: n + numbers.get("n", 0)) == 2  # reading takes no lock


def test_statistics_tell_how_even_the_shards_are() -> None:
    numbers: ShardedMap[int, int] = ShardedMap(shards=4)
    assert numbers.statistics().imbalance == 1.0
    for n in range(8):
        numbers.set(n * 4, n)  # hash(n) == n: all in one shard

    figures = numbers.statistics()

    assert (figures.keys, figures.writes, figures.contended) == (8, 8, 0)
    assert figures.imbalance == 4.0
    assert [shard.keys for shard in figures.shards] == [8, 0, 0, 0]


@pytest.mark.parametrize("count", [0, 3, -1])
def test_shards_come_in_powers_of_two(count: int) -> None:
    with pytest.raises(SettingsError, match="power of two"):
        ShardedMap(shards=count)
