"""The contract, part 4: what the end of a task means for those that wait for it."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from sennit.model.lifecycle import State
from sennit.model.task import OnParentFailed
from sennit.testing.contract_tools import POLICIES, Rig, got, in_threads


class CascadeContract:
    """Docstring of `finish`, from the dependants' side."""

    def test_success_releases_dependants_when_the_last_parent_is_done(self, rig: Rig) -> None:
        parents = [rig.start() for _ in range(3)]
        child = rig.put(after=[p.id for p in parents])
        for n, parent in enumerate(parents):
            assert rig.view(child).waiting_for == 3 - n
            rig.succeed(parent, b"%d" % n)

        assert rig.run(child).parents == (b"0", b"1", b"2")

    @pytest.mark.parametrize("bad", [State.FAILED, State.CANCELLED])
    @pytest.mark.parametrize("policy", POLICIES)
    def test_failure_and_cancellation_apply_the_policy_of_each_dependant(
        self, rig: Rig, policy: OnParentFailed, bad: State
    ) -> None:
        parent = rig.start()
        child = rig.put(after=[parent.id], on_parent_failed=policy)

        if bad is State.FAILED:
            rig.fail(parent)
        else:
            got(rig.store.cancel([parent.id]))

        view = rig.view(child)
        assert view.state is POLICIES[policy]
        assert (view.error.kind if view.error else "run") in {"run", f"parent_{bad}"}

    @pytest.mark.parametrize("policy", POLICIES)
    def test_the_policies_go_three_levels_deep(self, rig: Rig, policy: OnParentFailed) -> None:
        parent = rig.start()
        levels = [parent.id]
        for _ in range(3):
            levels.append(rig.put(after=[levels[-1]], on_parent_failed=policy))

        rig.fail(parent)

        ended = POLICIES[policy]
        below = [State.READY, State.WAITING, State.WAITING] if policy == "run" else [ended] * 3
        assert rig.states(*levels) == [State.FAILED, *below]

    def test_the_policies_of_a_mixed_chain_each_decide_for_their_own_task(self, rig: Rig) -> None:
        parent = rig.start()
        failed = rig.put(after=[parent.id], on_parent_failed="fail")
        cancelled = rig.put(after=[failed], on_parent_failed="cancel")
        run = rig.put(after=[cancelled], on_parent_failed="run")
        last = rig.put(after=[run])

        rig.fail(parent)

        expected = [State.FAILED, State.CANCELLED, State.READY, State.WAITING]
        assert rig.states(failed, cancelled, run, last) == expected

    def test_a_chain_of_a_thousand_fails_in_one_call(self, rig: Rig) -> None:
        parent = rig.start()
        specs = [rig.spec(after=[parent.id])]
        for _ in range(999):
            specs.append(rig.spec(parents=(specs[-1].ref,)))
        rig.submit(*specs)

        rig.fail(parent)

        assert (got(rig.store.ledger()).failed, got(rig.store.ledger()).live) == (1001, 0)

    def test_a_diamond_ends_its_last_task_once(self, rig: Rig) -> None:
        top = rig.start()
        left, right = rig.put(after=[top.id]), rig.put(after=[top.id], on_parent_failed="cancel")
        bottom = rig.put(after=[left, right])

        rig.fail(top)

        assert rig.states(left, right, bottom) == [State.FAILED, State.CANCELLED, State.FAILED]
        assert (got(rig.store.ledger()).failed, got(rig.store.ledger()).cancelled) == (3, 1)

    def test_a_diamond_that_succeeds_runs_its_last_task_once(self, rig: Rig) -> None:
        top = rig.start()
        sides = [rig.put(after=[top.id]), rig.put(after=[top.id])]
        bottom = rig.put(after=[top.id, *sides])

        rig.succeed(top, b"0")
        for side in sides:
            assert rig.state(bottom) is State.WAITING
            rig.succeed(rig.run(side), b"1")

        assert rig.run(bottom).parents == (b"0", b"1", b"1")
        assert rig.claim(5) == []

    def test_run_after_a_failed_and_a_good_parent_has_no_result_of_the_failed_one(self, rig: Rig) -> None:
        bad, good = rig.start(), rig.start()
        child = rig.put(after=[bad.id, good.id], on_parent_failed="run")

        rig.fail(bad)
        assert rig.state(child) is State.WAITING
        rig.succeed(good, b"2")

        assert rig.run(child).parents == (None, b"2")

    def test_eight_parents_that_end_at_once_release_each_child_once(self, open_rig: Callable[..., Rig]) -> None:
        rigs, rounds = (open_rig(), open_rig()), 25
        groups = []
        for _ in range(rounds):
            parents = rigs[0].submit(*(rigs[0].spec() for _ in range(8)))
            rigs[0].submit(*(rigs[0].spec(after=parents, queue="children") for _ in range(4)))
            groups.append(rigs[0].claim(8))
        gate = threading.Barrier(8)

        def race(k: int) -> None:
            for group in groups:
                gate.wait(10)
                rigs[k % 2].succeed(group[k])

        in_threads(8, race)

        assert got(rigs[0].store.counts()) == {"children": {State.READY: 4 * rounds}}
