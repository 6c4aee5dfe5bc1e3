"""The contract, part 11: what threads remember."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable

import pytest

from sennit.errors import ConcurrentModificationError, LeaseLost
from sennit.model.admission import Bounds
from sennit.model.lifecycle import State
from sennit.model.task import Claim, Failed, Succeeded
from sennit.model.thread import CONFIG, StateView, StateWrite
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import BOOM, Rig, got, in_threads


def version(
    expected: int, data: bytes = b"1", *, thread_id: str = "t", name: str = "state", operation_id: str | None = None
) -> StateWrite:
    """Return a write to the state of `t`, or to another chain."""
    return StateWrite(thread_id=thread_id, name=name, expected=expected, data=data, operation_id=operation_id)


def fill(rig: Rig, n: int, **options: str) -> None:
    """Write versions 1 … n, whose data are their numbers."""
    for k in range(n):
        rig.write(version(k, b"%d" % (k + 1), **options))


class WriteContract:
    """Docstrings of `state`, `write_states` and `state_history`."""

    def test_a_thread_without_a_state_is_at_version_0_without_data(self, rig: Rig) -> None:
        assert rig.remembered("t") == StateView(thread_id="t", version=0, data=None)
        assert rig.remembered("t", CONFIG) == StateView(thread_id="t", name=CONFIG)

    def test_a_write_makes_the_next_version_and_returns_it(self, rig: Rig, clock: VirtualClock) -> None:
        (first,) = rig.write(version(0, b'{"a":1}'))
        clock.advance(1)
        (second,) = rig.write(version(1, b'{"a":2}', operation_id="o"))

        assert first == StateView(thread_id="t", version=1, data=b'{"a":1}', at_us=clock.now_us() - 1_000_000)
        assert second == StateView(thread_id="t", version=2, data=b'{"a":2}', at_us=clock.now_us(), operation_id="o")
        assert rig.remembered() == second

    def test_the_version_asked_for_is_returned(self, rig: Rig) -> None:
        fill(rig, 3)

        assert [rig.remembered(version=n).data for n in (1, 2, 3)] == [b"1", b"2", b"3"]
        nothing = rig.remembered(version=9)
        assert (nothing.version, nothing.data) == (0, None)

    def test_a_read_sees_every_write_that_was_acknowledged_before_in_whatever_process(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rigs = open_rig(), open_rig(), open_rig()
        for k in range(30):
            (written,) = rigs[k % 3].write(version(k, b"%d" % k))
            assert [rig.remembered() for rig in rigs] == [written] * 3

    def test_state_and_config_are_chains_of_their_own(self, rig: Rig) -> None:
        fill(rig, 2)
        rig.write(version(0, b'"c"', name=CONFIG))

        assert (rig.remembered().version, rig.remembered("t", CONFIG).version) == (2, 1)
        assert rig.remembered("t", CONFIG).data == b'"c"'

    def test_a_write_whose_expected_version_is_not_the_present_one_is_a_conflict(self, rig: Rig) -> None:
        fill(rig, 2)

        for expected in (0, 1, 3):
            with pytest.raises(ConcurrentModificationError) as conflict:
                rig.write(version(expected, b"9"))
            facts = conflict.value.thread_id, conflict.value.expected, conflict.value.actual
            assert facts == ("t", expected, 2)

        assert (rig.remembered().version, rig.remembered().data) == (2, b"2")

    def test_writes_are_all_done_or_none(self, rig: Rig) -> None:
        fill(rig, 1, thread_id="b")

        with pytest.raises(ConcurrentModificationError) as conflict:
            rig.write(version(0, thread_id="a"), version(0, thread_id="b"), version(0, thread_id="c"))
        assert conflict.value.thread_id == "b"
        assert [rig.remembered(t).version for t in "abc"] == [0, 1, 0]

        views = rig.write(version(0, thread_id="a"), version(1, thread_id="b"), version(0, thread_id="c"))
        assert [(v.thread_id, v.version) for v in views] == [("a", 1), ("b", 2), ("c", 1)]

    def test_two_writes_to_one_chain_in_one_call_must_follow_on_each_other(self, rig: Rig) -> None:
        assert [v.version for v in rig.write(version(0, b"1"), version(1, b"2"), version(2, b"3"))] == [1, 2, 3]

        with pytest.raises(ConcurrentModificationError):
            rig.write(version(3, b"4"), version(3, b"5"))

        assert rig.remembered().data == b"3"

    def test_a_write_whose_operation_id_the_thread_knows_writes_nothing_and_returns_the_version_it_made_then(
        self, rig: Rig
    ) -> None:
        (first,) = rig.write(version(0, b"1", operation_id="o"))
        fill_on = rig.write(version(1, b"2"), version(2, b"3"))
        assert [v.version for v in fill_on] == [2, 3]

        assert rig.write(version(0, b"1", operation_id="o")) == [first]
        assert rig.write(version(77, b"other", operation_id="o")) == [first]

        assert (rig.remembered().version, rig.remembered().data) == (3, b"3")

    def test_an_operation_id_known_to_one_thread_is_news_to_another(self, rig: Rig) -> None:
        rig.write(version(0, b"1", thread_id="a", operation_id="o"))

        (view,) = rig.write(version(0, b"2", thread_id="b", operation_id="o"))

        assert (view.thread_id, view.version, view.data) == ("b", 1, b"2")
        assert rig.remembered("b") == view

    def test_a_conflict_leaves_no_operation_id_behind(self, rig: Rig) -> None:
        fill(rig, 1)
        with pytest.raises(ConcurrentModificationError):
            rig.write(version(0, b"2", operation_id="o"))

        (view,) = rig.write(version(1, b"2", operation_id="o"))

        assert (view.version, view.data) == (2, b"2")

    def test_of_eight_that_repeat_one_operation_at_once_one_writes(self, open_rig: Callable[..., Rig]) -> None:
        rigs = open_rig(), open_rig()
        views: list[StateView] = []

        in_threads(8, lambda k: views.extend(rigs[k % 2].write(version(0, b"%d" % k, operation_id="o"))))

        assert len(views) == 8
        assert {(v.version, v.data) for v in views} == {(1, rigs[0].remembered().data)}

    def test_every_append_of_eight_writers_is_there_once_and_every_other_try_was_a_conflict(
        self, open_rig: Callable[..., Rig]
    ) -> None:
        rigs, appends = (open_rig(), open_rig()), 15
        tries: list[bool] = []

        def append(k: int) -> None:
            rig = rigs[k % 2]
            for n in range(appends):
                done = False
                while not done:
                    now = rig.remembered()
                    data = (now.data or b"") + b"%d.%d " % (k, n)
                    try:
                        rig.write(version(now.version, data))
                    except ConcurrentModificationError:
                        pass
                    else:
                        done = True
                    tries.append(done)

        in_threads(8, append)

        now = rigs[0].remembered()
        assert sorted((now.data or b"").split()) == sorted(b"%d.%d" % (k, n) for k in range(8) for n in range(appends))
        assert (now.version, tries.count(True)) == (8 * appends, 8 * appends)

    # ------------------------------------------------------------ retention

    @pytest.mark.parametrize("bounds", [Bounds(state_versions=3)], indirect=True)
    def test_versions_older_than_the_bound_lose_their_data(self, rig: Rig) -> None:
        fill(rig, 5)

        assert [(v.version, v.data) for v in got(rig.store.state_history("t"))] == [(5, b"5"), (4, b"4"), (3, b"3")]
        assert [rig.remembered(version=n).data for n in (1, 2)] == [None, None]

    @pytest.mark.parametrize("bounds", [Bounds(state_versions=n) for n in (0, 1)], indirect=True)
    def test_the_present_version_never_loses_its_data(self, rig: Rig) -> None:
        fill(rig, 3)

        assert [(v.version, v.data) for v in got(rig.store.state_history("t"))] == [(3, b"3")]
        assert rig.remembered().data == b"3"

    @pytest.mark.parametrize("bounds", [Bounds(state_versions=2)], indirect=True)
    def test_an_operation_is_known_after_the_version_it_made_has_lost_its_data(self, rig: Rig) -> None:
        rig.write(version(0, b"1", operation_id="o"))
        for k in (1, 2, 3):
            rig.write(version(k))

        (view,) = rig.write(version(0, b"1", operation_id="o"))

        assert (view.version, view.data, view.operation_id) == (1, None, "o")
        assert [v.version for v in got(rig.store.state_history("t"))] == [4, 3]

    def test_the_history_is_newest_first_and_of_one_chain(self, rig: Rig) -> None:
        assert got(rig.store.state_history("t")) == []
        fill(rig, 4)
        fill(rig, 1, name=CONFIG)
        fill(rig, 1, thread_id="other")

        history = got(rig.store.state_history("t"))

        assert [v.version for v in history] == [4, 3, 2, 1]
        assert history[0] == rig.remembered()
        assert [v.version for v in got(rig.store.state_history("t", limit=2))] == [4, 3]
        assert [v.name for v in got(rig.store.state_history("t", CONFIG))] == [CONFIG]


class StateContract(WriteContract):
    """Docstrings of `write_states` with a claim, and of `finish` with writes."""

    def test_a_write_under_a_claim_says_which_task_made_it(self, rig: Rig) -> None:
        task = rig.start(thread_id="t")

        (early,) = rig.write(version(0), claim=task.claim)
        rig.finish(Succeeded(task.claim, b"1", writes=(version(1, b"2"),)))

        assert (early.task_id, rig.remembered().task_id, rig.remembered().version) == (task.id, task.id, 2)

    def test_a_write_under_a_claim_that_is_no_longer_held_writes_nothing_and_counts_as_refused(self, rig: Rig) -> None:
        task = rig.start(thread_id="t")
        rig.finish(Failed(task.claim, BOOM))

        for claim in (task.claim, Claim(task.id, 9), Claim(10**12, 1)):
            with pytest.raises(LeaseLost) as lost:
                rig.write(version(0), claim=claim)
            assert (lost.value.task_id, lost.value.attempt) == claim

        assert (rig.remembered().version, got(rig.store.ledger()).refused) == (0, 3)

    def test_a_conflict_under_a_claim_leaves_the_attempt_as_it_is(self, rig: Rig) -> None:
        task = rig.start(thread_id="t")
        fill(rig, 1)

        with pytest.raises(ConcurrentModificationError):
            rig.write(version(0), claim=task.claim)

        assert got(rig.store.ledger()).refused == 0
        rig.succeed(task)

    def test_what_an_attempt_wrote_stays_when_it_fails(self, rig: Rig) -> None:
        task = rig.start(thread_id="t")
        rig.write(version(0, b"1"), claim=task.claim)

        rig.fail(task)

        assert rig.remembered().data == b"1"

    def test_success_stores_the_result_the_children_and_the_writes_and_releases_dependants_at_once(
        self, rig: Rig
    ) -> None:
        task = rig.start(thread_id="t")
        dependant, child = rig.put(after=[task.id]), rig.spec(parent_id=task.id)
        writes = version(0, b"1"), version(1, b"2"), version(0, thread_id="u"), version(0, name=CONFIG)

        assert rig.finish(Succeeded(task.claim, b"9", (child,), writes)) == [True]

        assert rig.view(task.id).result == b"9"
        assert rig.states(task.id, dependant, child.ref.id) == [State.SUCCEEDED, State.READY, State.READY]
        assert (rig.remembered().data, rig.remembered().version) == (b"2", 2)
        assert (rig.remembered("u").version, rig.remembered("t", CONFIG).version) == (1, 1)

    def test_an_ending_that_writes_to_a_thread_whose_state_has_moved_on_is_none_and_nothing_of_it_is_recorded(
        self, rig: Rig
    ) -> None:
        task = rig.start(thread_id="t")
        dependant, child = rig.put(after=[task.id]), rig.spec(parent_id=task.id, child_key="c")
        fill(rig, 1)
        writes = version(0, thread_id="u"), version(0, b"stale")

        assert rig.finish(Succeeded(task.claim, b"9", (child,), writes)) == [None]

        assert rig.states(task.id, dependant) == [State.RUNNING, State.WAITING]
        assert (rig.remembered().data, rig.remembered("u").version) == (b"1", 0)
        ledger = got(rig.store.ledger())
        assert (ledger.submitted, ledger.succeeded, ledger.refused) == (2, 0, 0)

    def test_after_none_the_attempt_is_held_and_may_end_again(self, rig: Rig) -> None:
        task = rig.start(thread_id="t")
        child = rig.spec(parent_id=task.id)
        fill(rig, 1)
        assert rig.finish(Succeeded(task.claim, b"8", (child,), (version(0),))) == [None]

        assert got(rig.store.heartbeat(rig.worker_id, rig.lease_us)) == [task.claim]
        assert rig.finish(Succeeded(task.claim, b"9", (child,), (version(1, b"2"),))) == [True]

        assert (rig.view(task.id).result, rig.remembered().data) == (b"9", b"2")
        assert rig.state(child.ref.id) is State.READY

    def test_the_other_endings_of_a_call_with_a_none_stand(self, rig: Rig) -> None:
        one, two, three = rig.start(thread_id="a"), rig.start(thread_id="b"), rig.start()
        fill(rig, 1, thread_id="a")

        endings = (
            Succeeded(one.claim, b"1", writes=(version(0, thread_id="a"),)),
            Succeeded(two.claim, b"2", writes=(version(0, thread_id="b"),)),
            Failed(three.claim, BOOM),
        )
        assert rig.finish(*endings) == [None, True, True]

        assert rig.states(one.id, two.id, three.id) == [State.RUNNING, State.SUCCEEDED, State.FAILED]

    def test_of_two_endings_of_one_call_that_write_the_same_version_the_first_is_accepted(self, rig: Rig) -> None:
        one, two = rig.start(), rig.start()

        endings = [Succeeded(task.claim, b"1", writes=(version(0),)) for task in (one, two)]
        assert rig.finish(*endings) == [True, None]

        assert (rig.remembered().task_id, rig.state(two.id)) == (one.id, State.RUNNING)

    def test_an_ending_that_is_refused_writes_nothing(self, rig: Rig) -> None:
        task = rig.start(thread_id="t")
        rig.retry(task)

        assert rig.finish(Succeeded(task.claim, b"1", writes=(version(0),))) == [False]

        assert rig.remembered().version == 0

    def test_a_success_whose_children_are_refused_writes_nothing(self, rig: Rig) -> None:
        task = rig.start(thread_id="t")

        rig.finish(Succeeded(task.claim, b"1", (rig.spec(after=[10**12]),), (version(0),)))

        assert (rig.state(task.id), rig.remembered().version) == (State.FAILED, 0)

    def test_a_known_operation_in_an_ending_is_no_conflict(self, rig: Rig) -> None:
        task = rig.start(thread_id="t")
        rig.write(version(0, b"1", operation_id="o"))
        fill_on = rig.write(version(1, b"2"))
        assert fill_on[0].version == 2

        assert rig.finish(Succeeded(task.claim, b"1", writes=(version(0, b"1", operation_id="o"),))) == [True]

        assert rig.remembered().data == b"2"
