"""One lock that is held, and how it is kept: extended every third of its time, by an OS thread that nothing holds up.

    held ─► extended, extended, … ─► let go
              └── not in time, or taken away ─► lost: `on_lost()`, and nothing brings it back

It ends here no later than for the backend: its time is counted from before the question was sent. So whoever holds it hears
that it is lost before somebody else can have it, unless its whole process does not run at all; what it writes then is for
the fence to refuse.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from sennit.errors import LockLost, StoreError, UsageError
from sennit.model.lock import Fence, LockGrant, checked_ttl_us
from sennit.store.lease_keeper import Alarm, Keeper
from sennit.store.protocol_locks import LockBackend
from sennit.sync.ack import Ack
from sennit.sync.clock import uptime_us
from sennit.sync.pending import Flow, Pending, got

_log = logging.getLogger("sennit")

_BEATS: Final = 3  # extensions in one lifetime: two may fail
_RETRY_S_MAX: Final = 1.0


class Lease:
    """A lock that is held.

    Attributes:
        name: of the lock.
        token: greater than that of every holder before; for `fence`, or to be handed to a service that checks it itself.
    """

    def __init__(self, backend: LockBackend, keeper: Keeper, grant: LockGrant, *, ttl_us: int, prefix: str) -> None:
        self.name = grant.name
        self.token = grant.token
        self._backend = backend
        self._keeper = keeper
        self._shared = grant.shared
        self._ttl_us = ttl_us
        self._prefix = prefix
        self._lock = threading.Lock()  # guards what follows; held for nanoseconds
        self._until_us = uptime_us() + grant.until_us - backend.now_us()
        self._error: LockLost | None = None
        self._is_over = False
        self._on_lost: Callable[[], object] | None = None
        self._alarms: list[Alarm] = []

    def __repr__(self) -> str:
        return f"<Lease {self.name!r} token {self.token}, {'lost' if self.lost else f'{self.remaining_s:.1f} s left'}>"

    # ------------------------------------------------------------ what is known here

    @property
    def fence(self) -> Fence:
        """What a write carries to be refused once somebody else has the lock: `thread.update(fn, fence=lease.fence)`.

        Raises:
            UsageError: it is a shared lease from Redis: the store cannot know who else shares it.
        """
        if self._prefix and self._shared:
            raise UsageError(
                f"a shared lease of {self.name!r} from Redis has no fence",
                why="the store learns tokens from the writes that carry them, and those who share a lock have different ones",
                fix="take it exclusively, or leave backend= out and use the lock of the store",
            )
        return Fence(name=self._prefix + self.name, token=self.token, shared=self._shared)

    @property
    def remaining_s(self) -> float:
        """How long it is surely held, unless it is extended; 0 when it is lost or released."""
        with self._lock:
            if self._is_over or self._error is not None:
                return 0.0
            return max(0.0, (self._until_us - uptime_us()) / 1e6)

    @property
    def lost(self) -> bool:
        """True when it is not surely held any more, though nobody has released it."""
        return not self._is_over and self.remaining_s == 0.0

    @property
    def was_lost(self) -> bool:
        """True when it was lost before it was released."""
        return self._error is not None

    def check(self) -> None:
        """Raise LockLost if it is lost: for sync code, which nobody can interrupt."""
        if self.lost:
            raise self.error()

    def error(self) -> LockLost:
        """Return what to say of it when it is lost."""
        return self._error or LockLost(self.name, self.token, why="its time is over and it was not extended")

    # ------------------------------------------------------------ changing it

    def extend(self, ttl_s: float | None = None) -> Pending[None]:
        """Hold it until `ttl_s` from now (default: as long as it was taken for); `await` it, or `.result()`.

        Raises:
            LockLost: it is not held any more.
        """
        ttl_us = self._ttl_us if ttl_s is None else checked_ttl_us(ttl_s)

        def flow() -> Flow[None]:
            sent_us = uptime_us()
            try:
                yield from got(self._backend.extend_lock(self.name, self.token, ttl_us))
            except LockLost as error:
                self._lose(error)
                raise
            self._extended(sent_us + ttl_us)

        return Pending.of(flow)

    def release(self) -> Pending[None]:
        """Let go; the next in line has it at once. `await` it, or `.result()`.

        Raises:
            LockLost: it was not held any more.
        """

        def flow() -> Flow[None]:
            yield from got(self.let_go())

        return Pending.of(flow)

    def let_go(self) -> Ack[None]:
        """Stop keeping it and release it; what is sent is sent, whether anybody waits for the answer or not."""
        with self._lock:
            self._is_over = True
            alarms, self._alarms = self._alarms, []
        for alarm in alarms:
            alarm.cancel()
        return self._backend.release_lock(self.name, self.token)

    # ------------------------------------------------------------ keeping it

    def keep(self, on_lost: Callable[[], object]) -> None:
        """Extend it again and again until it is released; call `on_lost()` once, on any OS thread, when that fails in time."""
        with self._lock:
            self._on_lost = on_lost
        now_us = uptime_us()
        self._set_alarms(now_us + min(self._ttl_us, self._until_us - now_us) // _BEATS)

    def _set_alarms(self, beat_us: int) -> None:
        with self._lock:
            if self._is_over or self._error is not None:
                return
            for alarm in self._alarms:
                alarm.cancel()
            self._alarms = [self._keeper.at(beat_us, self._beat), self._keeper.at(self._until_us, self._time_is_over)]

    def _beat(self) -> None:
        sent_us = uptime_us()
        extended = self._backend.extend_lock(self.name, self.token, self._ttl_us)
        extended.add_done_callback(partial(self._beaten, sent_us))

    def _beaten(self, sent_us: int, extended: Ack[LockGrant]) -> None:
        try:
            extended.wait()
        except LockLost as error:
            self._lose(error)
        except StoreError as error:
            retry_us = round(min(self._ttl_us / (3 * _BEATS), _RETRY_S_MAX * 1e6))
            if not self._is_over:
                _log.warning("extending the lock %r failed, next try in %.2f s: %s", self.name, retry_us / 1e6, error)
            self._set_alarms(uptime_us() + retry_us)
        else:
            self._extended(sent_us + self._ttl_us)
            self._set_alarms(sent_us + self._ttl_us // _BEATS)

    def _extended(self, until_us: int) -> None:
        with self._lock:
            self._until_us = until_us

    def _time_is_over(self) -> None:
        with self._lock:
            is_over = self._until_us <= uptime_us()
        if is_over:
            self._lose(LockLost(self.name, self.token, why="it could not be extended in time"))

    def _lose(self, error: LockLost) -> None:
        with self._lock:
            if self._is_over or self._error is not None:
                return
            self._error = error
            on_lost, self._on_lost = self._on_lost, None
            alarms, self._alarms = self._alarms, []
        for alarm in alarms:
            alarm.cancel()
        if on_lost is not None:
            on_lost()
