"""The states of a task, and the only table of moves between them.

    submit ─► waiting ──parents done──► ready ──claim──► running ──► succeeded
          └─► scheduled ──time came──►    ▲                 ├──► failed      (attempts used up, or not retryable)
                                          │                 ├──► scheduled   (retry, snooze, durable sleep)
                                          │                 ├──► suspended ──answer / event──► ready
                                          └──lease lost─────┘
    cancel: any live state ─► cancelled
    hold back: ready ─► waiting, in the same transaction, while its thread's turn or a room under threads_max is taken

A store keeps no state column for open tasks: each live state *is* a narrow table (`TABLES`), and a move deletes the
row from one and inserts it into another in one transaction. Stores are checked against this table by the contract
suite and by `sennit verify`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a task is; the words of the CLI, the docs and the JSON output."""

    WAITING = "waiting"
    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    SUSPENDED = "suspended"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def live(self) -> bool:
        """True while the task has not ended."""
        return self not in ENDED


class Event(StrEnum):
    """What may happen to a task."""

    PARENTS_DONE = "parents_done"
    DELAY = "delay"
    PARENT_FAILED = "parent_failed"
    TIME_CAME = "time_came"
    CLAIM = "claim"
    SUCCEED = "succeed"
    FAIL = "fail"
    RETRY = "retry"
    SNOOZE = "snooze"
    SLEEP = "sleep"
    SUSPEND = "suspend"
    RESUME = "resume"
    GIVE_BACK = "give_back"
    LEASE_LOST = "lease_lost"
    POISON = "poison"
    DEADLINE = "deadline"
    CANCEL = "cancel"
    REVIVE = "revive"
    HOLD_BACK = "hold_back"


ENDED: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
LIVE: Final = frozenset(State) - ENDED

# The narrow table that holds a task in each live state.
TABLES: Final = {
    State.WAITING: "waiting",
    State.SCHEDULED: "timer",
    State.READY: "ready",
    State.RUNNING: "running",
    State.SUSPENDED: "parked",
}

# How an ended state is written in the wide row; 0 is "open, look into the narrow tables".
ENDED_CODES: Final = {State.SUCCEEDED: 1, State.FAILED: 2, State.CANCELLED: 3}
ENDED_BY_CODE: Final = {code: state for state, code in ENDED_CODES.items()}

MOVES: Final = {
    (State.WAITING, Event.PARENTS_DONE): State.READY,
    (State.WAITING, Event.DELAY): State.SCHEDULED,
    (State.WAITING, Event.PARENT_FAILED): State.FAILED,
    (State.SCHEDULED, Event.TIME_CAME): State.READY,
    (State.READY, Event.CLAIM): State.RUNNING,
    (State.RUNNING, Event.SUCCEED): State.SUCCEEDED,
    (State.RUNNING, Event.FAIL): State.FAILED,
    (State.RUNNING, Event.RETRY): State.SCHEDULED,
    (State.RUNNING, Event.SNOOZE): State.SCHEDULED,
    (State.RUNNING, Event.SLEEP): State.SCHEDULED,
    (State.RUNNING, Event.SUSPEND): State.SUSPENDED,
    (State.RUNNING, Event.GIVE_BACK): State.READY,
    (State.RUNNING, Event.LEASE_LOST): State.READY,
    (State.RUNNING, Event.POISON): State.FAILED,
    (State.SUSPENDED, Event.RESUME): State.READY,
    (State.FAILED, Event.REVIVE): State.READY,
    (State.CANCELLED, Event.REVIVE): State.READY,
    (State.READY, Event.HOLD_BACK): State.WAITING,
    **{(state, Event.CANCEL): State.CANCELLED for state in LIVE},
    **{(state, Event.DEADLINE): State.FAILED for state in LIVE},
}


def move(state: State, event: Event) -> State:
    """Return the state after `event`.

    Raises:
        ValueError: the table has no such move.
    """
    try:
        return MOVES[state, event]
    except KeyError:
        raise ValueError(f"a task that is {state} cannot {event}") from None
