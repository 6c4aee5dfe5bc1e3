"""What the fake provider has seen: the counts a test asserts on, and the pauses it has called for.

429 of a minute or a window ──► PauseSeen ··· until_s ···► first arrival ──► first success
                                 └ requests that come meanwhile are counted
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

import msgspec

RefusalKind = Literal["burst", "minute", "window"]

# The status under which a request is counted whose client went away before its end. Source: nginx.
CLIENT_CLOSED: Final = 499
PAUSES_MAX: Final = 1000


class PauseSeen(msgspec.Struct, kw_only=True):
    """A time in which clients were told to send nothing. Times are seconds on the monotonic clock of the machine.

    Attributes:
        announced_s: when the first 429 of it was sent.
        until_s: when clients may come back, as it was announced (more exactly than headers in whole seconds can).
        requests: how many arrived meanwhile, without the one that was told first.
        first_arrival_s, first_ok_s: the first request after it, and the end of the first that arrived after it and succeeded.
    """

    kind: RefusalKind
    announced_s: float
    until_s: float
    requests: int = 0
    first_arrival_s: float | None = None
    first_ok_s: float | None = None


class ProviderStatistics(msgspec.Struct, kw_only=True, frozen=True):
    """Counts since the start or the last `reset()`. Only model calls count, not the list of models.

    Attributes:
        requests: that have arrived.  ok: answered 200, in full.
        by_status: ended, by status sent; 499 when the client went away before the end, 0 when nothing was sent.
        in_service: being served now.  max_concurrency: the most at once, ever.
        refused: 429 by kind, of the limits; those that are faults are in `faults`.
        faults: how often each was done.
        requests_during_pause: arrived while clients had been told to send nothing.
        input_tokens, output_tokens: of answers that were sent in full.
        connections: TCP connections open now, this look excluded.
        log: (arrival on the machine's monotonic clock in seconds, status) of the newest that have ended, in the order of their ends.
    """

    requests: int = 0
    ok: int = 0
    by_status: dict[int, int] = {}
    in_service: int = 0
    max_concurrency: int = 0
    refused: dict[RefusalKind, int] = {}
    faults: dict[str, int] = {}
    requests_during_pause: int = 0
    pauses: tuple[PauseSeen, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0
    connections: int = 0
    log: tuple[tuple[float, int], ...] = ()


class Books:
    """Where the server writes down what happens. Belongs to one event loop."""

    def __init__(self, log_max: int) -> None:
        self.requests = 0
        self.ok = 0
        self.by_status: dict[int, int] = {}
        self.in_service = 0
        self.max_concurrency = 0
        self.refused: dict[RefusalKind, int] = {}
        self.faults: dict[str, int] = {}
        self.requests_during_pause = 0
        self.pauses: deque[PauseSeen] = deque(maxlen=PAUSES_MAX)
        self.input_tokens = 0
        self.output_tokens = 0
        self.log: deque[tuple[float, int]] = deque(maxlen=log_max)
        self._open: dict[RefusalKind, PauseSeen] = {}

    def arrived(self, now_s: float) -> None:
        """A request is here; nothing is decided yet."""
        self.requests += 1
        paused = False
        for pause in self._open.values():
            if now_s < pause.until_s:
                pause.requests += 1
                paused = True
            elif pause.first_arrival_s is None:
                pause.first_arrival_s = now_s
        self.requests_during_pause += paused

    def refuse(self, kind: RefusalKind, now_s: float, wait_s: float) -> None:
        """It is told to come back in `wait_s`."""
        self.refused[kind] = self.refused.get(kind, 0) + 1
        if kind == "burst":
            return
        pause = self._open.get(kind)
        if pause is None or now_s >= pause.until_s:
            pause = self._open[kind] = PauseSeen(kind=kind, announced_s=now_s, until_s=now_s + wait_s)
            self.pauses.append(pause)
        pause.until_s = max(pause.until_s, now_s + wait_s)

    def served(self) -> None:
        """It is in service now; `left` must follow."""
        self.in_service += 1
        self.max_concurrency = max(self.max_concurrency, self.in_service)

    def left(self) -> None:
        """It is in service no longer."""
        self.in_service -= 1

    def ended(self, arrival_s: float, now_s: float, status: int, *, is_ok: bool) -> None:
        """It was answered, or its client went away."""
        self.by_status[status] = self.by_status.get(status, 0) + 1
        self.log.append((arrival_s, status))
        if is_ok:
            self.ok += 1
            for kind, pause in list(self._open.items()):
                if arrival_s >= pause.until_s:
                    pause.first_ok_s = now_s
                    del self._open[kind]

    def statistics(self, *, connections: int, with_log: bool) -> ProviderStatistics:
        """Return a snapshot."""
        return ProviderStatistics(
            requests=self.requests,
            ok=self.ok,
            by_status=dict(self.by_status),
            in_service=self.in_service,
            max_concurrency=self.max_concurrency,
            refused=dict(self.refused),
            faults=dict(self.faults),
            requests_during_pause=self.requests_during_pause,
            pauses=tuple(msgspec.structs.replace(pause) for pause in self.pauses),
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            connections=connections,
            log=tuple(self.log) if with_log else (),
        )
