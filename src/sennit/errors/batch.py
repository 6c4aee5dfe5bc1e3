"""Batches of calls, and topics that messages are broadcast on."""

from __future__ import annotations

from sennit.errors.base import SennitError


class BatchError(SennitError, RuntimeError):
    """A call through a `Batcher`, or a subscription, went wrong for a reason that is not in its item."""

    code = "S380"


class BatchFailed(BatchError):
    """The batch function ended without an answer to each item: a wrong number of results, or it was stopped.

    What stopped it is `__cause__`.
    """

    code = "S381"


class BatcherFull(BatchError):
    """As many items wait as may; this one was not taken.

    Attributes:
        waiting_max: the bound.
    """

    code = "S382"
    exit_code = 75

    def __init__(self, waiting_max: int) -> None:
        super().__init__(
            f"{waiting_max} items wait for the batcher, and no more may (waiting_max)",
            why="they come faster than its function takes them",
            fix='try again later, let submit wait for room (when_full="wait"), or raise items_max or in_flight_max',
        )
        self.waiting_max = waiting_max


class BatcherClosed(BatchError):
    """The batcher, or the topic, is closed; the item was not taken, or was given up when the time to close was over."""

    code = "S383"


class SubscriberTooSlow(BatchError):
    """A subscription with `when_full="error"` had no room for a message: it has ended, and nobody else was held up.

    Attributes:
        waiting_max: how many messages it could hold; it was given all of those before.
        missed: messages published since, up to now.
    """

    code = "S384"

    def __init__(self, *, waiting_max: int, missed: int) -> None:
        super().__init__(
            f"the subscriber was more than {waiting_max} messages behind and has missed {missed} since",
            fix="read faster, raise waiting_max, or choose what a full subscription means: "
            'when_full="block" holds publishers back, "drop_oldest" counts what it drops',
        )
        self.waiting_max = waiting_max
        self.missed = missed
