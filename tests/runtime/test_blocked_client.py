"""A process that only submits, and whose submit waits for room while others of its OS threads take ids."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sennit import App
from sennit.errors import QueueFull

IDS_OF_MORE_THAN_A_BLOCK = 1025  # each call waits for the writer, under the lock that guards the blocks


def echo(n: int) -> int:
    return n


def test_waiting_for_room_never_waits_for_an_id_on_the_writers_own_os_thread(tmp_path: Path) -> None:
    """It did: the wait began in a callback of the refused submit, which is called by the writer."""
    for n in range(20):
        app = App(f"sqlite:///{tmp_path}/{n}.db", durability="normal", queue_max=3, admission_timeout_s=0.05)
        task = app.task(name="echo")(echo)
        task.map(range(3))
        over = threading.Event()

        def take_ids(app: App = app, over: threading.Event = over) -> None:
            while not over.is_set():
                app.store.take_ids(IDS_OF_MORE_THAN_A_BLOCK)

        takers = [threading.Thread(target=take_ids, daemon=True) for _ in range(3)]
        for taker in takers:
            taker.start()
        with pytest.raises(QueueFull):
            task.submit(3)
        over.set()
        for taker in takers:
            taker.join()
        app.close()
