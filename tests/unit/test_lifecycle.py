"""The table of moves is whole: every state can be reached and left, and it says what the documentation draws."""

from __future__ import annotations

import pytest

from sennit.model.lifecycle import (
    ENDED,
    ENDED_BY_CODE,
    ENDED_CODES,
    LIVE,
    MOVES,
    TABLES,
    Event,
    State,
    move,
)

DRAWN = {
    (State.WAITING, Event.PARENTS_DONE): State.READY,
    (State.WAITING, Event.PARENT_FAILED): State.FAILED,
    (State.SCHEDULED, Event.TIME_CAME): State.READY,
    (State.READY, Event.CLAIM): State.RUNNING,
    (State.RUNNING, Event.SUCCEED): State.SUCCEEDED,
    (State.RUNNING, Event.FAIL): State.FAILED,
    (State.RUNNING, Event.POISON): State.FAILED,
    (State.RUNNING, Event.RETRY): State.SCHEDULED,
    (State.RUNNING, Event.SNOOZE): State.SCHEDULED,
    (State.RUNNING, Event.SLEEP): State.SCHEDULED,
    (State.RUNNING, Event.SUSPEND): State.SUSPENDED,
    (State.SUSPENDED, Event.RESUME): State.READY,
    (State.RUNNING, Event.LEASE_LOST): State.READY,
    (State.RUNNING, Event.GIVE_BACK): State.READY,
    (State.FAILED, Event.REVIVE): State.READY,
    (State.CANCELLED, Event.REVIVE): State.READY,
}
ALL_PAIRS = [(state, event) for state in State for event in Event]


@pytest.mark.parametrize(("pair", "after"), DRAWN.items(), ids=lambda value: "-".join(map(str, value)))
def test_every_drawn_move_is_in_the_table(pair: tuple[State, Event], after: State) -> None:
    assert move(*pair) is after


@pytest.mark.parametrize("state", sorted(LIVE))
def test_every_live_state_can_be_cancelled_and_can_miss_its_deadline(state: State) -> None:
    assert move(state, Event.CANCEL) is State.CANCELLED
    assert move(state, Event.DEADLINE) is State.FAILED


@pytest.mark.parametrize(("state", "event"), [pair for pair in ALL_PAIRS if pair not in MOVES])
def test_a_move_that_is_not_in_the_table_is_refused(state: State, event: Event) -> None:
    with pytest.raises(ValueError, match=f"{state} cannot {event}"):
        move(state, event)


def test_an_ended_task_moves_only_by_being_revived_and_a_success_never() -> None:
    assert {event for state, event in MOVES if state in ENDED} == {Event.REVIVE}
    assert not [event for state, event in MOVES if state is State.SUCCEEDED]


def test_every_event_moves_something() -> None:
    assert {event for _, event in MOVES} == set(Event)


def test_every_state_can_be_reached_and_every_live_one_can_end() -> None:
    reached = {State.WAITING}
    while (more := reached | {after for (state, _), after in MOVES.items() if state in reached}) != reached:
        reached = more
    # A delay of a submitted task stands between its last parent and `ready`; a retry gets there by the table, too.
    assert reached == set(State)

    ends = set(ENDED)
    while (more := ends | {state for (state, _), after in MOVES.items() if after in ends}) != ends:
        ends = more
    assert ends == set(State)


def test_each_live_state_is_one_table_and_each_ended_one_a_code() -> None:
    assert TABLES.keys() == LIVE
    assert len(set(TABLES.values())) == len(LIVE)
    assert ENDED_CODES.keys() == ENDED
    assert 0 not in ENDED_BY_CODE
    assert {ENDED_BY_CODE[code] for code in ENDED_CODES.values()} == ENDED


@pytest.mark.parametrize("state", State)
def test_a_state_is_live_or_ended(state: State) -> None:
    assert state.live is (state in LIVE)
    assert state.live is (state not in ENDED)
