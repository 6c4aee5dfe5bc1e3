"""The contract, part 27: what is kept of coding agents, and what is shown of them."""

# ruff: noqa: D102, S101 - the name of a test is its sentence; asserts are what it is made of

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from sennit.model.agent import AgentStatus, AgentUsage, AgentView
from sennit.model.lifecycle import State
from sennit.model.task import (
    Cancelled,
    Claim,
    Claimed,
    Crashed,
    Ending,
    Failed,
    GivenBack,
    Parked,
    Preempted,
    Retried,
    Slept,
)
from sennit.testing.clock import VirtualClock
from sennit.testing.contract_tools import BOOM, Rig, got, in_threads

FULL = AgentView(
    task_id=0, agent="work", adapter="claude", status="working", run=2, session_id="s", model="m", pid=7, started_ticks=8,
    host="h", boot_id="b", since_us=5, event_us=6, doing="reads a file", tools=3, cwd="/c", branch="br", worktree="/w",
    usage=AgentUsage(input_tokens=1, output_tokens=2, cached_input_tokens=3, cost_usd=0.5), repository="/r", folder="/f",
    error="e",
)  # fmt: skip
SAID: Sequence[AgentStatus] = ("starting", "working", "waiting", "idle", "done", "failed")
OPEN_SAID: Sequence[AgentStatus] = ("starting", "working", "waiting", "idle")


def note(rig: Rig, claim: Claim, status: AgentStatus = "working", **facts: Any) -> bool:
    """Say how the agent of an attempt is."""
    return got(rig.store.note_agent(claim, AgentView(task_id=0, agent="work", status=status, **facts)))


def begin(rig: Rig, status: AgentStatus = "working", **facts: Any) -> Claimed:
    """Start a task with an agent."""
    task = rig.start()
    assert note(rig, task.claim, status, **facts)
    return task


def seen(rig: Rig, **wanted: Any) -> list[AgentView]:
    """Return the agents that match."""
    return got(rig.store.agents(**wanted))


def only(rig: Rig) -> AgentView:
    """Return the only agent there is."""
    (view,) = seen(rig)
    return view


def statuses(rig: Rig, **wanted: Any) -> dict[int, AgentStatus]:
    """Return task → status of the agents that match."""
    return {view.task_id: view.status for view in seen(rig, **wanted)}


def every_kind(rig: Rig) -> dict[int, AgentStatus]:
    """Have agents of every status, however they came to it; return task → status."""
    kinds = {begin(rig, status).id: status for status in SAID}
    parked, again, succeeded, cancelled, late = (begin(rig) for _ in range(5))
    rig.park(parked)
    rig.finish(GivenBack(again.claim))
    rig.run(again.id)
    rig.succeed(succeeded)
    rig.finish(Cancelled(cancelled.claim, "not wanted"))
    note(rig, late.claim, "done")
    rig.fail(late)
    rig.start()  # it has no agent
    kinds |= {parked.id: "waiting", again.id: "starting", succeeded.id: "done", cancelled.id: "failed", late.id: "done"}
    return kinds


class NoteContract:
    """Docstring of `note_agent`."""

    def test_the_view_of_an_agent_is_kept_for_all_processes(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        task = rig.start()

        assert got(rig.store.note_agent(task.claim, FULL))

        view = msgspec.structs.replace(FULL, task_id=task.id, attempt=1)
        assert (seen(rig), seen(other)) == ([view], [view])

    def test_the_view_replaces_the_earlier_one_as_a_whole(self, rig: Rig) -> None:
        task = rig.start()
        got(rig.store.note_agent(task.claim, FULL))

        note(rig, task.claim, "idle")

        assert only(rig) == AgentView(task_id=task.id, agent="work", status="idle")

    def test_the_note_of_an_attempt_that_is_not_held_stores_nothing_and_counts_as_refused(self, rig: Rig) -> None:
        task = begin(rig, doing="first")
        rig.finish(GivenBack(task.claim))
        again = rig.run(task.id)

        assert not note(rig, task.claim, doing="stale")
        assert not note(rig, Claim(10**12, 1), doing="of nobody")

        assert (only(rig).doing, got(rig.store.ledger()).refused) == ("first", 2)
        assert note(rig, again.claim, doing="second")
        assert (only(rig).doing, only(rig).attempt) == ("second", 2)

    @pytest.mark.parametrize("how", ["done", "cancelled"])
    def test_the_note_of_a_task_that_has_ended_is_refused(self, rig: Rig, how: str) -> None:
        task = begin(rig, doing="first")
        if how == "done":
            rig.succeed(task)
        else:
            got(rig.store.cancel([task.id]))

        assert not note(rig, task.claim, doing="late")

        assert (only(rig).doing, got(rig.store.ledger()).refused) == ("first", 1)

    def test_it_is_kept_under_the_task_and_the_attempt_of_the_claim(self, rig: Rig) -> None:
        task = rig.start()
        other = rig.start()

        got(rig.store.note_agent(task.claim, AgentView(task_id=other.id, agent="work", attempt=9)))

        assert (only(rig).task_id, only(rig).attempt) == (task.id, 1)

    def test_text_that_is_not_unicode_comes_back_with_backslashes(self, rig: Rig) -> None:
        task = begin(rig, doing="a\0b \N{DROMEDARY CAMEL}", worktree="/a\udce4b")

        assert (only(rig).doing, only(rig).worktree) == ("a\0b \N{DROMEDARY CAMEL}", "/a\\udce4b")
        assert only(rig).task_id == task.id

    def test_of_many_notes_at_once_each_task_has_its_last(self, open_rig: Callable[..., Rig]) -> None:
        rigs = [open_rig(), open_rig()]
        tasks = [[rig.start() for _ in range(4)] for rig in rigs]

        def note_all(k: int) -> None:
            told = [
                rigs[k].store.note_agent(task.claim, AgentView(task_id=0, agent="work", doing=str(n)))
                for n in range(25) for task in tasks[k]
            ]  # fmt: skip
            assert all(map(got, told))

        in_threads(2, note_all)

        assert {view.task_id: view.doing for view in seen(rigs[0])} == {t.id: "24" for of in tasks for t in of}

    def test_of_two_attempts_at_once_the_later_one_is_not_overwritten(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        for _ in range(10):
            task = rig.start(priority=0)
            later: list[Claim] = []

            def first(k: int, task: Claimed = task, later: list[Claim] = later) -> None:
                if k == 0:
                    told = [rig.store.note_agent(task.claim, AgentView(task_id=0, agent="work")) for _ in range(20)]
                    heard = [got(ack) for ack in told]
                    assert heard == sorted(heard, reverse=True)  # once refused, refused for good
                else:
                    got(rig.store.finish([GivenBack(task.claim)]))
                    (again,) = other.claim()
                    later.append(again.claim)
                    assert note(other, again.claim, doing="later")

            in_threads(2, first)

            (view,) = seen(rig, task_ids=[task.id])
            assert (view.attempt, view.doing) == (2, "later")
            assert other.finish(Failed(later[0], BOOM)) == [True]


class StatusContract:
    """What follows from the task: the docstring of `protocol_agents`."""

    def test_what_the_running_attempt_has_said_holds(self, rig: Rig) -> None:
        said = {begin(rig, status).id: status for status in SAID}

        assert statuses(rig) == said

    def test_a_later_attempt_that_has_said_nothing_is_starting(self, rig: Rig) -> None:
        for said in OPEN_SAID:
            task = begin(rig, said, pid=7)
            rig.finish(GivenBack(task.claim))
            rig.run(task.id)

        assert {(view.status, view.attempt, view.pid) for view in seen(rig)} == {("starting", 1, 7)}

    @pytest.mark.parametrize("how", ["given back", "preempted", "crashed", "rescued", "asks", "sleeps", "retries"])
    def test_an_agent_waits_while_its_task_is_open_and_does_not_run(self, rig: Rig, how: str) -> None:
        tasks = [begin(rig, said, since_us=5) for said in OPEN_SAID]
        due_us = rig.store.now_us() + 10**6
        endings: dict[str, Callable[[Claim], Ending]] = {
            "given back": GivenBack,
            "preempted": Preempted,
            "crashed": lambda claim: Crashed(claim, BOOM),
            "asks": lambda claim: Parked(claim, "ask"),
            "sleeps": lambda claim: Slept(claim, due_us),
            "retries": lambda claim: Retried(claim, due_us, BOOM),
        }

        if how == "rescued":
            assert got(rig.store.rescue(rig.worker_id)) == len(tasks)
        else:
            rig.finish(*(endings[how](task.claim) for task in tasks))

        assert [(view.status, view.since_us) for view in seen(rig)] == [("waiting", 5)] * len(OPEN_SAID)

    def test_an_agent_waits_while_its_task_is_claimed_ahead(self, rig: Rig) -> None:
        task = rig.run(rig.put())
        note(rig, task.claim)
        rig.finish(GivenBack(task.claim))
        first = rig.put(priority=0)

        rig.store.want_ahead("q", 1)
        rig.store.want("q", 1)
        rig.heard.wait_for(lambda: [t.id for t in rig.heard.claimed] == [first])

        assert rig.reason(task.id) == (State.RUNNING, "ahead")
        assert (statuses(rig), got(rig.store.agent_counts())) == ({task.id: "waiting"}, {"work": {"waiting": 1}})

    @pytest.mark.parametrize("ended", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
    def test_the_agent_of_an_ended_task_is_done_or_has_failed_since_its_end(
        self, rig: Rig, clock: VirtualClock, ended: State
    ) -> None:
        tasks = [begin(rig, said, since_us=5) for said in OPEN_SAID]
        clock.advance(3)

        for task in tasks:
            if ended is State.SUCCEEDED:
                rig.succeed(task)
            elif ended is State.FAILED:
                rig.fail(task)
            else:
                got(rig.store.cancel([task.id]))

        status = "done" if ended is State.SUCCEEDED else "failed"
        shown = {(view.status, view.since_us, view.is_live) for view in seen(rig)}
        assert shown == {(status, clock.now_us(), False)}

    @pytest.mark.parametrize("said", ["done", "failed"])
    def test_last_words_stand_until_a_later_attempt_says_something(
        self, rig: Rig, clock: VirtualClock, said: AgentStatus
    ) -> None:
        succeeds, fails, runs, waits = (begin(rig, said, since_us=5) for _ in range(4))
        clock.advance(3)

        rig.succeed(succeeds)
        rig.fail(fails)
        rig.finish(GivenBack(runs.claim))
        later = rig.run(runs.id)
        rig.finish(GivenBack(waits.claim))

        assert [(view.status, view.since_us) for view in seen(rig)] == [(said, 5)] * 4
        assert note(rig, later.claim, "starting")
        assert statuses(rig)[runs.id] == "starting"

    def test_the_agent_of_a_revived_task_waits(self, rig: Rig) -> None:
        task = begin(rig)
        rig.fail(task)

        got(rig.store.revive([task.id]))

        assert only(rig).status == "waiting"


class ListContract(StatusContract):
    """Docstrings of `agents` and `agent_counts`."""

    def test_agents_are_listed_of_the_newest_task_first(self, rig: Rig) -> None:
        tasks = [rig.start() for _ in range(4)]
        for n in (2, 0, 3, 1):
            note(rig, tasks[n].claim)

        assert [view.task_id for view in seen(rig)] == [task.id for task in reversed(tasks)]
        assert [view.task_id for view in seen(rig, limit=2)] == [tasks[3].id, tasks[2].id]

    def test_without_agents_the_list_is_empty(self, rig: Rig) -> None:
        task = rig.start()

        assert (seen(rig), seen(rig, live=True), seen(rig, task_ids=[task.id])) == ([], [], [])
        assert got(rig.store.agent_counts()) == {}

    def test_agents_are_listed_that_have_not_ended_or_that_have(self, rig: Rig) -> None:
        kinds = every_kind(rig)

        assert statuses(rig) == kinds
        assert statuses(rig, live=True) == {i: s for i, s in kinds.items() if s not in ("done", "failed")}
        assert statuses(rig, live=False) == {i: s for i, s in kinds.items() if s in ("done", "failed")}
        assert {view.is_live for view in seen(rig, live=True)} == {True}

    def test_the_agents_of_certain_tasks_are_listed_without_those_that_have_none(self, rig: Rig) -> None:
        kinds = every_kind(rig)
        ids = [*kinds, *kinds, rig.put(), 10**12]

        assert statuses(rig, task_ids=ids) == kinds
        assert list(statuses(rig, task_ids=ids)) == sorted(kinds, reverse=True)
        for live in (True, False):
            assert statuses(rig, task_ids=ids, live=live) == statuses(rig, live=live)
        assert list(statuses(rig, task_ids=ids, limit=3)) == list(statuses(rig, limit=3))
        assert seen(rig, task_ids=[10**12]) == []

    @pytest.mark.parametrize("live", [None, True, False])
    def test_the_next_page_is_of_older_tasks(self, rig: Rig, live: bool | None) -> None:  # noqa: FBT001 - a case
        kinds = every_kind(rig)
        everything = seen(rig, live=live)
        for ids in ((), tuple(kinds)):
            paged: list[AgentView] = []
            before_id = None
            while page := seen(rig, live=live, limit=2, before_id=before_id, task_ids=ids):
                assert len(page) <= 2
                paged += page
                before_id = page[-1].task_id

            assert paged == everything

    def test_agents_are_counted_by_handler_and_status_as_they_are_listed(self, rig: Rig) -> None:
        kinds = list(every_kind(rig).values())
        note(rig, rig.run(rig.put(handler="other", priority=0)).claim, "idle")

        counts = got(rig.store.agent_counts())

        assert counts == {"work": {status: kinds.count(status) for status in {*kinds}}, "other": {"idle": 1}}
        assert sum(n for of in counts.values() for n in of.values()) == len(seen(rig))


class AgentsContract(NoteContract, ListContract):
    """Docstring of `release_agent`, and what goes with the task."""

    def test_a_worktree_is_forgotten_by_anybody_while_the_task_runs(self, open_rig: Callable[..., Rig]) -> None:
        rig, other = open_rig(), open_rig()
        task = rig.start()
        got(rig.store.note_agent(task.claim, FULL))

        view = got(other.store.release_agent(task.id))

        assert view == msgspec.structs.replace(FULL, task_id=task.id, worktree="")
        assert seen(rig) == [view]
        assert note(rig, task.claim, "idle", worktree="/new")
        assert only(rig).worktree == "/new"

    def test_a_worktree_is_forgotten_after_the_task_has_ended(self, rig: Rig, clock: VirtualClock) -> None:
        task = begin(rig, worktree="/w", branch="b")
        rig.fail(task)

        view = got(rig.store.release_agent(task.id))

        assert view is not None
        assert (view.worktree, view.branch, view.status, view.since_us) == ("", "b", "failed", clock.now_us())
        assert got(rig.store.release_agent(task.id)) == view == only(rig)

    def test_there_is_nothing_to_release_of_a_task_without_agent(self, rig: Rig) -> None:
        task = rig.start()

        assert [got(rig.store.release_agent(i)) for i in (task.id, 10**12)] == [None, None]

    def test_a_task_whose_agent_has_a_worktree_is_not_pruned(self, rig: Rig, clock: VirtualClock) -> None:
        kept, plain = begin(rig, worktree="/w"), begin(rig)
        rig.succeed(kept)
        rig.succeed(plain)
        clock.advance(1)

        assert got(rig.store.prune(before_us=clock.now_us(), limit=10)) == 1

        assert [view.task_id for view in seen(rig)] == [kept.id]
        assert rig.state(kept.id) is State.SUCCEEDED

    def test_with_its_task_the_view_of_an_agent_goes(self, rig: Rig, clock: VirtualClock) -> None:
        task = begin(rig, worktree="/w")
        rig.succeed(task)
        clock.advance(1)
        got(rig.store.release_agent(task.id))

        assert got(rig.store.prune(before_us=clock.now_us(), limit=10)) == 1

        assert (seen(rig), seen(rig, task_ids=[task.id]), got(rig.store.agent_counts())) == ([], [], {})
        assert got(rig.store.release_agent(task.id)) is None
