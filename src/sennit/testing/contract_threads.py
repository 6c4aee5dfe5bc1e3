"""The contract, part 17: threads at a glance, and how they are forgotten."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

import pytest

from sennit.errors import ConcurrentModificationError, ThreadBusy
from sennit.model.thread import CONFIG, AskSpec, ThreadView
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_state import fill, version
from sennit.testing.contract_tools import Rig, got


class ThreadsContract:
    """Docstrings of `threads` and `forget_thread`."""

    def test_threads_that_have_an_open_task_or_a_state_are_listed(self, rig: Rig, clock: VirtualClock) -> None:
        rig.succeed(rig.start(thread_id="over"))
        (ask, _) = rig.ask(AskSpec(key="a"), AskSpec(key="b"), AskSpec(key="c", kind="event"), thread_id="busy")
        rig.put(thread_id="busy")
        fill(rig, 2, thread_id="idle")
        rig.put()

        assert got(rig.store.threads()) == [
            ThreadView(thread_id="busy", holder_id=ask.task_id, open_tasks=2, asks=2),
            ThreadView(thread_id="idle", version=2, changed_us=clock.now_us()),
        ]

    def test_threads_with_open_tasks_come_first_then_the_last_written(self, rig: Rig, clock: VirtualClock) -> None:
        for thread_id in ("idle-1", "busy-1", "idle-2", "busy-2"):
            clock.advance(1)
            fill(rig, 1, thread_id=thread_id)
        for thread_id in ("busy-2", "busy-1", "busy-3"):
            rig.put(thread_id=thread_id)

        listed = [thread.thread_id for thread in got(rig.store.threads())]

        assert listed == ["busy-2", "busy-1", "busy-3", "idle-2", "idle-1"]
        assert [thread.thread_id for thread in got(rig.store.threads(limit=2))] == ["busy-2", "busy-1"]

    def test_forgetting_a_thread_deletes_its_state_and_config_all_versions(self, rig: Rig) -> None:
        fill(rig, 3)
        rig.write(version(0, name=CONFIG))
        fill(rig, 1, thread_id="other")

        assert got(rig.store.forget_thread("t")) is True

        assert [rig.remembered("t", name).data for name in ("state", CONFIG)] == [None, None]
        assert [rig.remembered(version=n).data for n in (1, 2, 3)] == [None] * 3
        assert got(rig.store.state_history("t")) == got(rig.store.state_history("t", CONFIG)) == []
        assert [thread.thread_id for thread in got(rig.store.threads())] == ["other"]

    def test_after_it_was_forgotten_versions_go_on_and_who_knew_the_old_state_cannot_overwrite_the_new_one(
        self, rig: Rig
    ) -> None:
        fill(rig, 2)
        old = rig.remembered()
        got(rig.store.forget_thread("t"))
        assert rig.remembered().version == 2

        rig.write(version(2, b'"new"'))

        for expected in (0, old.version):
            with pytest.raises(ConcurrentModificationError) as conflict:
                rig.write(version(expected, b'"stale"'))
            assert conflict.value.actual == 3
        assert [(v.version, v.data) for v in got(rig.store.state_history("t"))] == [(3, b'"new"')]

    def test_forgetting_a_thread_forgets_its_operations(self, rig: Rig) -> None:
        rig.write(version(0, b"1", operation_id="o"))
        got(rig.store.forget_thread("t"))

        (view,) = rig.write(version(1, b"2", operation_id="o"))

        assert (view.version, view.data) == (2, b"2")

    def test_forgetting_a_thread_of_which_there_is_nothing_is_false(self, rig: Rig) -> None:
        rig.succeed(rig.start(thread_id="t"))
        fill(rig, 1, thread_id="u")

        assert got(rig.store.forget_thread("t")) is False
        assert [got(rig.store.forget_thread("u")) for _ in range(2)] == [True, False]

    def test_a_thread_with_open_tasks_is_not_forgotten(self, rig: Rig) -> None:
        (ask,) = rig.ask(AskSpec(key="a"), thread_id="t")
        fill(rig, 1)

        with pytest.raises(ThreadBusy) as busy:
            got(rig.store.forget_thread("t"))

        assert (busy.value.thread_id, busy.value.task_id) == ("t", ask.task_id)
        assert rig.remembered().version == 1
