"""Handlers that nobody has placed; worker processes import this module."""

from __future__ import annotations

import functools
import logging
import math
import os
import pkgutil
import re
import threading
import time
from collections.abc import Callable

from sennit import step

WORDS = re.compile(r"\w+")
SEEN: list[int] = []
LOG = logging.getLogger("placement")


def spin(cpu_s: float) -> int:
    """Computes in Python for so long; returns where."""
    end_s = time.thread_time() + cpu_s
    while time.thread_time() < end_s:
        math.sqrt(2)
    return os.getpid()


def spin_and_step(cpu_s: float) -> int:
    spin(cpu_s)
    return step(os.getpid).result()


def spin_and_perhaps_step(cpu_s: float, *, with_step: bool) -> int:
    """Nobody can see the step that a name in a string leads to."""
    spin(cpu_s)
    return int(pkgutil.resolve_name("sennit:step")(os.getpid).result()) if with_step else os.getpid()


def eat_and_step(cpu_s: float, *, with_step: bool) -> int:
    """Catches whatever a step raises, as some code does."""
    try:
        return spin_and_perhaps_step(cpu_s, with_step=with_step)
    except BaseException:  # noqa: BLE001
        return -1


def remembers(value: int) -> int:
    SEEN.append(value)
    return len(SEEN)


def calls_one_that_remembers(value: int) -> int:
    return remembers(value) + 1


def remembers_in_a_lambda(value: int) -> int:
    return max([value], key=lambda one: len(SEEN) + one)


def assigns(value: int) -> int:
    global COUNT  # noqa: PLW0603
    COUNT = value
    return value


COUNT = 0


def remembers_in_a_default(value: int, seen: list[int] = []) -> int:  # noqa: B006
    seen.append(value)
    return len(seen)


def logs(value: int) -> int:
    LOG.warning("%d", value)
    return value


@functools.lru_cache
def remembers_what_is_true_anywhere(value: int) -> int:
    return value * COUNT


def counts_words(text: str) -> int:
    return len(WORDS.findall(text)) + remembers_what_is_true_anywhere(1)


def make(go: threading.Event | None = None) -> Callable[..., int]:
    def inside(cpu_s: float, *, waits: bool = False) -> int:
        if waits and go is not None:
            go.wait()
        return spin(cpu_s)

    return inside


def replaced(value: int) -> int:
    return value


first_replaced = replaced


def replaced(value: int) -> int:  # type: ignore[no-redef]
    return value + 1
