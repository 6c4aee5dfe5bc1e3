"""Handlers that seem to mean the same in another process, or do; worker processes import this module."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pkgutil
import random
import sys
from collections.abc import Callable
from pathlib import Path

from tests.pools import placement_bodies as other
from tests.pools.placement_bodies import SEEN, remembers, spin

LIMIT = 1
push = SEEN.append


class StubbornError(Exception):
    """Pickles, but cannot be made again."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class Counter:
    total = 0

    @classmethod
    def count(cls) -> int:
        cls.total += 1
        return cls.total


class Rows:
    rows: list[int] = []  # noqa: RUF012


@dataclasses.dataclass(frozen=True)
class Point:
    x: int = 0

    def moved(self) -> Point:
        return dataclasses.replace(self, x=self.x + LIMIT)


@functools.cache
def made_once() -> list[int]:
    return []


def limited(cpu_s: float) -> int:
    """Returns what another module may have assigned."""
    spin(cpu_s)
    return LIMIT


def either(cpu_s: float, *, how: str = "", path: str = "") -> int:
    """Returns where it runs; sometimes it does something else, hidden from who reads it."""
    if how == "log":
        pkgutil.resolve_name("logging:getLogger")("placement").info("said")
    if how == "raise":
        raise StubbornError(code=5)
    try:
        if how == "endless":
            Path(path).with_suffix(".began").touch()
            while True:
                spin(0.0)
        spin(cpu_s)
    finally:
        if how == "endless":
            Path(path).write_text(str(os.getpid()))
    return os.getpid()


def uses_a_class(value: int) -> int:
    return Point(value).moved().x


def takes_a_list_of_another_module(value: int) -> None:
    other.SEEN.append(value)


def calls_a_function_of_another_module(value: int) -> int:
    return other.remembers(value) + remembers(value)


def uses_a_bound_builtin(value: int) -> None:
    push(value)


def adds_to_a_class(value: int) -> None:
    Counter.total += value


def counts_in_a_class_method() -> int:
    return Counter.count()


def uses_a_list_of_a_class(value: int) -> None:
    Rows.rows.append(value)


def uses_what_is_made_once(value: int) -> None:
    made_once().append(value)


def reads_the_environment() -> str:
    return os.environ["HOME"]


def asks_for_the_environment() -> str | None:
    return os.getenv("HOME")


def draws() -> float:
    return random.random()


def says(value: int) -> None:
    print(value)  # noqa: T201


def logs_through_the_module(value: int) -> None:
    logging.warning("%d", value)  # noqa: LOG015


def writes(value: str) -> None:
    sys.stdout.write(value)


def imports_inside(value: int) -> int:
    from tests.pools import placement_bodies

    return placement_bodies.remembers(value)


def counts_in_an_attribute() -> None:
    spin.calls = 1  # type: ignore[attr-defined]


def hands_a_module_on(value: str) -> object:
    return getattr(other, value)


STAYS: list[tuple[Callable[..., object], str]] = [
    (takes_a_list_of_another_module, "other.SEEN, a list"),
    (calls_a_function_of_another_module, "SEEN, a list"),
    (uses_a_bound_builtin, "uses push"),
    (adds_to_a_class, "assigns attributes of Counter"),
    (counts_in_a_class_method, "Counter.count assigns"),
    (uses_a_list_of_a_class, "rows, a list"),
    (uses_what_is_made_once, "made once and kept"),
    (reads_the_environment, "os.environ"),
    (asks_for_the_environment, "os.getenv"),
    (draws, "random.random"),
    (says, "calls print()"),
    (logs_through_the_module, "of logging"),
    (writes, "sys.stdout"),
    (imports_inside, "imports"),
    (counts_in_an_attribute, "assigns attributes of spin"),
    (hands_a_module_on, "uses the module other"),
]
