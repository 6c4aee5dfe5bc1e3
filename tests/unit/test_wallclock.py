"""The news that somebody set the wall clock."""

from __future__ import annotations

import asyncio
import time

import pytest

from sennit.sync.wallclock import WallClockWatch


def test_setting_the_clock_is_reported_at_once() -> None:
    async def scenario() -> None:
        was_set = asyncio.Event()
        watch = WallClockWatch(asyncio.get_running_loop(), was_set.set)
        if not watch.watches:
            pytest.skip("this system does not report changes of the clock")
        for _ in range(2):  # it goes on watching
            try:
                time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))  # to what it is
            except PermissionError:
                pytest.skip("setting the clock needs privileges this user does not have")
            await asyncio.wait_for(was_set.wait(), 10)
            was_set.clear()
        watch.close()
        watch.close()

    asyncio.run(scenario())
