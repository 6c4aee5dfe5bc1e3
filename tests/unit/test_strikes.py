"""An exception taken back before it was raised leaves nothing behind in the interpreter."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

from sennit.sync import strikes
from sennit.sync.strikes import strike, withdraw


class Struck(BaseException):
    """What is raised."""


def spin() -> None:
    while True:
        pass


def test_a_strike_is_raised_in_the_os_thread_that_it_is_meant_for() -> None:
    raised: list[type[BaseException]] = []
    running = threading.Event()

    def body() -> None:
        running.set()
        try:
            spin()
        except Struck as error:
            raised.append(type(error))

    os_thread = threading.Thread(target=body)
    os_thread.start()
    running.wait()
    strike(os_thread.ident or 0, Struck)
    os_thread.join()

    assert raised == [Struck]


def test_what_is_withdrawn_is_never_raised_and_other_os_threads_can_be_traced() -> None:
    """In CPython 3.11 the mark that is left would keep a traced OS thread at its first line for ever."""
    me = threading.get_ident()
    list(map(strikes._set, (me, me), (Struck, strikes._NOTHING)))  # in C: no Python instruction comes in between
    withdraw(me)
    seen: list[str] = []

    def trace(frame: FrameType, event: str, _: Any) -> None:
        seen.append(f"{event} {frame.f_code.co_name}")

    def begin() -> None:
        sys.settrace(trace)
        traced()
        sys.settrace(None)

    def traced() -> None:
        """Is called, and that is all."""

    os_thread = threading.Thread(target=begin, daemon=True)
    os_thread.start()
    os_thread.join(20)

    assert "call traced" in seen
