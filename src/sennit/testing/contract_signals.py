"""The contract, part 14: events answer, and an inbox is watched."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from sennit.errors import StoreUnavailable
from sennit.model.lifecycle import State
from sennit.model.thread import Answer, AskSpec, OnExpire
from sennit.store.protocol import Store
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_asks import A, answers, event, say
from sennit.testing.contract_tools import SECOND_US, TIMEOUT_S, Rig, got, in_threads


class InboxContract:
    """Docstring of `watch_inbox`."""

    def test_it_resolves_with_the_revision_at_once_if_that_is_greater_than_what_was_seen(self, rig: Rig) -> None:
        start = got(rig.store.watch_inbox(-1))
        rig.ask(A)

        now = got(rig.store.watch_inbox(start))

        assert now > start
        assert got(rig.store.watch_inbox(now - 1)) == now
        assert not rig.store.watch_inbox(now).done

    @pytest.mark.parametrize("change", ["asked", "answered", "escalated", "expired", "void"])
    def test_the_revision_grows_with_every_question_that_is_asked_changed_or_closed(
        self, rig: Rig, clock: VirtualClock, change: str
    ) -> None:
        on_expire: OnExpire = "escalate" if change == "escalated" else "fail"
        (ask,) = rig.ask(AskSpec(key="a", expires_us=SECOND_US, on_expire=on_expire))
        seen = got(rig.store.watch_inbox(-1))
        watch = rig.store.watch_inbox(seen)
        assert not watch.done
        match change:
            case "asked":
                rig.ask(A)
            case "answered":
                say(rig, ask)
            case "void":
                got(rig.store.cancel([ask.task_id]))
            case _:
                clock.advance(1)
                rig.fire()

        assert got(watch) > seen

    def test_it_resolves_when_another_process_asks_or_answers(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        watch = rig.store.watch_inbox(got(rig.store.watch_inbox(-1)))

        (ask,) = other.ask(A)
        rig.store.look()
        seen = got(watch)
        watch = rig.store.watch_inbox(seen)
        say(other, ask)
        rig.store.look()

        assert got(watch) > seen

    def test_close_fails_a_pending_inbox_watch(self, make_store: Callable[[], Store]) -> None:
        store = make_store()
        watch = store.watch_inbox(got(store.watch_inbox(-1)))

        store.close()

        with pytest.raises(StoreUnavailable):
            watch.result(timeout_s=TIMEOUT_S)


class SignalsContract(InboxContract):
    """Docstring of `signal`, and of `finish` for waits for events."""

    def test_a_signal_answers_every_open_wait_for_its_event(self, rig: Rig) -> None:
        tasks = [rig.start() for _ in range(5)]
        waits = event("e"), event("f"), event("e", "2"), event("e", name="sent"), A
        for task, spec in zip(tasks, waits, strict=True):
            rig.park(task, spec)

        assert got(rig.store.signal("paid", "1", b'{"sum":5}')) == 2

        assert rig.states(*(task.id for task in tasks)) == [*[State.READY] * 2, *[State.SUSPENDED] * 3]
        (kept,) = answers(rig, tasks[0].id).values()
        assert (kept.state, kept.value) == ("answered", msgspec.Raw(b'{"sum":5}'))
        late = rig.run(tasks[0].id)
        rig.park(late, event("late"))
        assert rig.state(late.id) is State.SUSPENDED

    def test_a_signal_nobody_waits_for_is_kept_and_the_next_wait_takes_the_oldest_each_once(self, rig: Rig) -> None:
        assert [got(rig.store.signal("paid", "1", payload)) for payload in (b"1", b"2")] == [0, 0]
        tasks = [rig.start() for _ in range(3)]
        for task in tasks:
            rig.park(task, event("e"))

        assert rig.states(*(task.id for task in tasks)) == [State.READY, State.READY, State.SUSPENDED]
        taken = [answers(rig, task.id)["e"].value for task in tasks[:1]]
        rig.succeed(rig.run(tasks[0].id))
        taken.append(answers(rig, tasks[1].id)["e"].value)
        assert taken == [msgspec.Raw(b"1"), msgspec.Raw(b"2")]

    def test_a_signal_that_is_kept_is_for_its_event_only(self, rig: Rig) -> None:
        got(rig.store.signal("paid", "2", b"1"))
        got(rig.store.signal("sent", "1", b"1"))
        task = rig.start()

        rig.park(task, event("e"))

        assert rig.state(task.id) is State.SUSPENDED
        assert got(rig.store.signal("paid", "1", b"1")) == 1

    def test_one_task_takes_one_signal_per_wait(self, rig: Rig) -> None:
        task = rig.start()
        for payload in (b"1", b"2", b"3"):
            got(rig.store.signal("paid", "1", payload))

        rig.park(task, event("first"), event("second"))

        kept = answers(rig, task.id)
        assert {key: kept[key].value for key in kept} == {"first": msgspec.Raw(b"1"), "second": msgspec.Raw(b"2")}
        rig.park(rig.run(task.id), event("third"))
        assert answers(rig, task.id)["third"].value == msgspec.Raw(b"3")

    def test_a_wait_that_is_over_takes_no_signal(self, rig: Rig) -> None:
        task = rig.start()
        rig.park(task, event("e"))
        got(rig.store.cancel([task.id]))

        assert got(rig.store.signal("paid", "1", b"1")) == 0

    def test_each_of_many_signals_is_taken_once_by_tasks_of_two_processes(self, open_rig: Callable[..., Rig]) -> None:
        rigs, n = (open_rig(), open_rig()), 20
        tasks = [rigs[k % 2].start() for k in range(2 * n)]

        def race(k: int) -> None:
            for number in range(k // 2, 2 * n, 2):
                if k % 2:
                    rigs[number % 2].park(tasks[number], event("e", str(number)))
                else:
                    got(rigs[1 - number % 2].store.signal("paid", str(number), b"%d" % number))

        in_threads(4, race)

        steps = {task.id: task.steps for task in rigs[0].claim(3 * n)}
        taken = [msgspec.json.decode(steps[task.id]["e"], type=Answer).value for task in tasks]
        assert taken == [msgspec.Raw(b"%d" % number) for number in range(2 * n)]
