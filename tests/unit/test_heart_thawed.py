"""A heart that wakes after the end of its lease says so before it asks what it still holds."""

from __future__ import annotations

import logging
import threading

import pytest

from sennit.model.task import Claim
from sennit.schedule.heart import Heart
from sennit.store.memory import MemoryStore
from sennit.testing.contract_tools import Rig, running_loop

LEASE_S = 1000.0


def test_a_process_that_slept_past_its_lease_says_so_and_asks(caplog: pytest.LogCaptureFixture) -> None:
    now_us = 1_000_000
    store = MemoryStore(now_us=lambda: now_us)
    asked = threading.Event()
    held: list[list[Claim]] = []

    def beaten(claims: list[Claim]) -> None:
        held.append(claims)
        asked.set()

    with running_loop() as loop, caplog.at_level(logging.WARNING, "sennit"):
        rig = Rig(store, loop, lease_s=LEASE_S)
        rig.put()
        claims = [task.claim for task in rig.claim()]
        now_us += int((LEASE_S + 30) * 1_000_000)  # as when it was stopped and goes on
        heart = Heart(
            store,
            rig.worker_id,
            lease_s=LEASE_S,
            on_beat=beaten,
            on_trouble=lambda error: pytest.fail(str(error)),
            on_fence=pytest.fail,
            on_back=lambda: None,
        )
        heart.start()
        heart.held(1)
        assert asked.wait(30)
        heart.stop()
        store.close()

    assert held == [claims]
    assert "wakes 30.0 s after the end of its lease" in caplog.text
