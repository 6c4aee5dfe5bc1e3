"""A circuit breaker for one process, from any OS thread and any event loop: `breaker` with a lock and a clock.

    breaker = Breaker(failures=5, open_s=60, name="search")

    async with breaker.guard():            # or `with`; raises CircuitOpen
        await search(query)

    permit = breaker.try_acquire()         # or without exceptions
    if not permit:
        return permit.retry_after_s
    permit.settle("ok")

The lock is held for the bookkeeping and never during a call. A permit that is dropped without `settle` does no harm while
the breaker is closed; half open, it is taken for lost after `probe_s`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict, Unpack, final

import msgspec

from sennit.errors import CircuitOpen, UsageError
from sennit.limit import breaker as pure
from sennit.limit.breaker import BreakerPhase, BreakerState
from sennit.limit.rejected import Rejected
from sennit.model.provider import BreakerSpec, CallOutcome
from sennit.sync.clock import NowUs, uptime_us

if TYPE_CHECKING:
    from types import TracebackType

_log = logging.getLogger("sennit")

OnChange = Callable[[BreakerPhase, BreakerPhase], object]
Classify = Callable[[BaseException], CallOutcome]


class BreakerOptions(TypedDict, total=False):
    """The fields of a BreakerSpec, as keywords."""

    failures: int
    successes: int
    open_s: float
    half_open: int
    probe_s: float
    window_s: float
    calls_min: int
    rate: float
    slow_s: float
    slow_rate: float


class BreakerStatistics(NamedTuple):
    """A snapshot.

    Attributes:
        failures: in a row, of the simple form. calls_seen, failures_seen, slow_seen: in the window, else 0.
        probes: half-open calls that are out. rejected: since the breaker was made.
    """

    state: BreakerPhase
    failures: int
    calls_seen: int
    failures_seen: int
    slow_seen: int
    probes: int
    rejected: int


def classified(error: BaseException) -> CallOutcome:
    """Return how a call went that ended with `error`: `timeout`, `error`, or `cancelled` for what is no `Exception`."""
    if isinstance(error, TimeoutError):
        return "timeout"
    return "error" if isinstance(error, Exception) else "cancelled"


@final
class BreakerPermit:
    """One call may be made. True, unlike a `Rejected`.

    Attributes:
        is_probe: the breaker is half open, and this call finds out.
    """

    __slots__ = ("_began_us", "_breaker", "_generation", "_is_settled", "is_probe")

    def __init__(self, breaker: Breaker, generation: int, began_us: int, is_probe: bool) -> None:  # noqa: FBT001 - hot
        self._breaker = breaker
        self._generation = generation
        self._began_us = began_us
        self._is_settled = False
        self.is_probe = is_probe

    def __bool__(self) -> Literal[True]:
        return True

    def settle(self, outcome: CallOutcome = "ok", *, duration_s: float | None = None) -> None:
        """Say how the call went, once.

        Args:
            duration_s: how long it took; else the time since the permit was taken.

        Raises:
            UsageError: it is settled already.
        """
        self._breaker._settle(self, outcome, duration_s)  # noqa: SLF001 - same module


class Breaker:
    """Refuses calls for a while when too many have failed. See `BreakerSpec` for the knobs.

    Args:
        spec: or its fields as keywords; both: the keywords win.
        name: whose breaker it is, for the error.
        now_us: a clock in µs; the default never steps.
        on_change: called with (phase before, phase now) after each change, in order, without the lock, in the OS thread
            that brought it about. If it raises, that is logged.
        classify: says how a guarded call went that has raised.

    Raises:
        SettingsError: a knob is out of its bounds.
    """

    def __init__(
        self,
        spec: BreakerSpec | None = None,
        *,
        name: str = "breaker",
        now_us: NowUs = uptime_us,
        on_change: OnChange | None = None,
        classify: Classify = classified,
        **options: Unpack[BreakerOptions],
    ) -> None:
        self.spec = pure.checked_spec(msgspec.structs.replace(spec or BreakerSpec(), **options))
        self.name = name
        self._now_us = now_us
        self._on_change = on_change
        self._classify = classify
        self._state = BreakerState()
        self._rejected = 0
        # The simple form has no use for durations: it reads no clock while all goes well.
        self._is_timed = self.spec.rate > 0 or self.spec.slow_rate > 0
        self._lock = threading.Lock()
        self._changes: deque[tuple[BreakerPhase, BreakerPhase]] = deque()
        self._telling = threading.Lock()

    @property
    def state(self) -> BreakerPhase:
        """`closed`, `open`, `half_open` or `isolated`. Open stays open until somebody asks again after `open_s`."""
        return self._state.at

    def try_acquire(self) -> BreakerPermit | Rejected:
        """Return a permit to make one call now, to be settled; or a `Rejected`, which is false."""
        with self._lock:
            state = self._state
            if state.at == "closed":
                began_us = self._now_us() if self._is_timed else 0
                return BreakerPermit(self, state.generation, began_us, False)
            now_us = self._now_us()
            n, when_us = pure.room(self.spec, state, now_us)
            if n == 0:
                self._rejected += 1
                # Isolated: only a person changes that; asking once per open_s does no harm.
                wait_s = self.spec.open_s if when_us is None else max(0, when_us - now_us) / 1e6
                return Rejected(wait_s, "breaker")
            before = state.at
            permit = BreakerPermit(self, pure.admit(self.spec, state, now_us), now_us, True)
            if state.at == before:
                return permit
            self._changes.append((before, state.at))
        self._tell()
        return permit

    def guard(self) -> Guard:
        """Return what lets one call through: `with breaker.guard():` or `async with`. Gives the permit.

        How it went is taken from the exception, unless the permit is settled inside.

        Raises:
            CircuitOpen: on entering; the call is not to be made.
        """
        return Guard(self)

    def isolate(self) -> None:
        """Let nothing through until `reset()`."""
        self._by_hand(pure.isolate)

    def reset(self) -> None:
        """Close it and forget what was counted."""
        self._by_hand(pure.reset)

    def trip(self) -> None:
        """Open it, as if too many calls had failed."""
        self._by_hand(pure.trip)

    def statistics(self) -> BreakerStatistics:
        """Return a snapshot."""
        with self._lock:
            state = self._state
            seen = pure.window(self.spec, state, self._now_us())
            return BreakerStatistics(
                state.at, state.failures, seen.calls, seen.failures, seen.slow, len(state.probes), self._rejected
            )

    # ------------------------------------------------------------ inside

    def _settle(self, permit: BreakerPermit, outcome: CallOutcome, duration_s: float | None) -> None:
        with self._lock:
            if permit._is_settled:  # noqa: SLF001 - same module
                raise UsageError(
                    f"a permit of the breaker {self.name!r} was settled twice",
                    why="the second result would count as a call of its own",
                    fix="call settle() once for each permit; inside guard() it is optional",
                )
            permit._is_settled = True  # noqa: SLF001
            state = self._state
            if outcome == "ok" and state.at == "closed" and not self._is_timed:
                # What nearly every call does, without the pure function's arguments: half the price.
                if permit._generation == state.generation:  # noqa: SLF001
                    state.failures = 0
                return
            before = state.at
            now_us = self._now_us()
            duration_us = now_us - permit._began_us if duration_s is None else round(duration_s * 1e6)  # noqa: SLF001
            is_other = pure.settle(
                self.spec,
                state,
                generation=permit._generation,  # noqa: SLF001
                outcome=outcome,
                duration_us=duration_us,
                now_us=now_us,
            )
            if not is_other:
                return
            self._changes.append((before, state.at))
        self._tell()

    def _by_hand(self, move: Callable[[BreakerState, int], None]) -> None:
        with self._lock:
            before = self._state.at
            move(self._state, self._now_us())
            if self._state.at == before:
                return
            self._changes.append((before, self._state.at))
        self._tell()

    def _tell(self) -> None:
        """Report changes one at a time and in order; whoever comes second leaves his to the first."""
        while self._changes and self._telling.acquire(blocking=False):
            try:
                while self._changes:
                    change = self._changes.popleft()
                    if self._on_change is not None:
                        self._on_change(*change)
            except Exception:  # noqa: BLE001 - logged; the listener's bug is not the caller's, whose call went well
                _log.exception("on_change of the breaker %r failed", self.name)
            finally:
                self._telling.release()


@final
class Guard:
    """One guarded call; made by `Breaker.guard()`."""

    __slots__ = ("_breaker", "_permit")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._permit: BreakerPermit | None = None

    def __enter__(self) -> BreakerPermit:
        if self._permit is not None:
            raise UsageError("a guard was entered twice", fix="write `with breaker.guard():` for each call")
        answer = self._breaker.try_acquire()
        if not answer:
            raise CircuitOpen(self._breaker.name, retry_after_s=answer.retry_after_s)
        self._permit = answer
        return answer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        permit = self._permit
        if permit is not None and not permit._is_settled:  # noqa: SLF001 - same module
            permit.settle("ok" if error is None else self._outcome(error))

    async def __aenter__(self) -> BreakerPermit:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def _outcome(self, error: BaseException) -> CallOutcome:
        if isinstance(error, asyncio.CancelledError):
            return "cancelled"
        return self._breaker._classify(error)  # noqa: SLF001 - same module
